"""Every loss on two real pairs of models; see docs/real-pair.md."""
