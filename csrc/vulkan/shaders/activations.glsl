// Activation functions of pairs (gate, up) and of one value.
float swiglu(float gate, float up, float limit, float alpha) {
    // NaN passes: a comparison with it is false.
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate / (1 + exp(-alpha * gate)) * (up + 1);
}

float silu(float x) {
    return x / (1 + exp(-x));
}

// The tanh form, as gpt2 has it.
float gelu(float x) {
    float t = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    return x / (1 + exp(-2 * t));
}
