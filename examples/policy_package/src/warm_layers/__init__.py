"""An example of a package with policies for hotcold; see policy.py."""
