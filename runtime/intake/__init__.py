"""What goes in: a request and its pictures, made ready for the loop, and the memory for them."""
