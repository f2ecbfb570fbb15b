// What becomes of a product in its MODE. The shader has MODE, IS_PAIR and push, a gptoss_product_push.

// Biases of gate and up lie side by side unless they are apart.
void finish(uint line, uint row, uint expert, float y, float up) {
    bool is_joined = IS_PAIR && is_absent(push.up);
    uint from = (expert * push.num_outs + row) * (is_joined ? 2 : 1);
    if (!is_absent(push.bias))
        y += Floats(push.bias).at[from];
    uint at = line * push.num_outs + row;
    if (MODE == GPTOSS_PRODUCT_RESIDUAL) {
        Floats(push.extra).at[at] += y;
        if (is_absent(push.result))
            return;
    } else if (IS_PAIR) {
        uvec2 up_bias = is_joined ? push.bias : push.up_bias;
        if (!is_absent(up_bias))
            up += Floats(up_bias).at[from + (is_joined ? 1 : 0)];
        y = MODE == GPTOSS_PRODUCT_SILU ? silu(y) * up : swiglu(y, up, push.limit, push.alpha);
    } else if (MODE == GPTOSS_PRODUCT_GELU) {
        y = gelu(y);
    } else if (MODE == GPTOSS_PRODUCT_ADD) {
        y = fma(push.alpha, y, Floats(push.result).at[at]);
    }
    Floats(push.result).at[at] = y;
}
