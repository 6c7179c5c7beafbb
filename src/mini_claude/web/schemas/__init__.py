"""What goes over the wire, as Pydantic models, and the functions that turn it into plain values."""
