"""Products and loops of a pass, compiled or packed for the CPU."""
