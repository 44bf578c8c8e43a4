"""What activations are multiplied with weights and summed up: found in a graph, and looked at as data comes by."""
