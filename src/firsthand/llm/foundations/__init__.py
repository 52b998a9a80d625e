"""NumPy only: one neuron, activations, losses, descent, autograd, an MLP and a gradient check.

Read in this order: memory, neuron, activations, losses, descent, scalar_autograd,
tensor_gradients, tensor_autograd, initialization, layers, optimizers, gradcheck, digits,
training, gradient_flow. Weights have the shape (in_features, out_features) everywhere.
"""
