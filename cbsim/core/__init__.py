"""One replica: engines, and the record of what happens in them."""
