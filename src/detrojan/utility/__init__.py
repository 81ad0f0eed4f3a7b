"""What a language model is still good for, and what it still resists: benchmarks, a judge, jailbreaks."""
