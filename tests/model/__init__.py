"""Models of the kernel's protocols outside its code, checked state by state."""
