"""What ``reconciler bench`` measures: each figure beside its floor, measured in the same run."""
