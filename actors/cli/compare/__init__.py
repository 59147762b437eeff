"""`hotcold compare`: cases, turns, table and page."""
