"""The decoder room: shapes, layers, attention, experts, generation, and weights in and out."""
