"""Tasks → scores: what the model does on inputs it has not seen, against chance and against a
constant answer."""
