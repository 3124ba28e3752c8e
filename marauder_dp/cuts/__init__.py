"""Per-example clipping of any JAX loss without per-example gradients: `walker` → `factors` → `routes` → `engine`."""
