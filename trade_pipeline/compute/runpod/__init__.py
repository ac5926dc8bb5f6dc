"""GPU pods of RunPod as a place where tasks run: plan, budget, pod, logs, result, and the bill."""
