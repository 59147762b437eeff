"""`hotcold bench`: one subcommand a measurement."""
