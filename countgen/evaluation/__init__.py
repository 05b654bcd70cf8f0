"""How well methods do: finished pictures read, judged by a counter that none of them saw, and summed up."""
