"""How fast is this machine: ratios against baselines and ceilings of the same run."""
