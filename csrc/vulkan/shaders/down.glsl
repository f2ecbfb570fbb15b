// Outputs of experts, and their sum for a token. The shader has WORKGROUP, CHOSEN and push, a
// gptoss_down_push.

void store_output(uint line, uint expert, uint row, float y) {
    if (row >= push.num_outs)
        return;
    y += is_absent(push.bias) ? 0 : Floats(push.bias).at[expert * push.num_outs + row];
    Shared(push.outputs).at[line * push.num_outs + row] = y;
}

// The last of the workgroups that have rows group * count and on adds.
void add_outputs(uint group, uint count) {
    uint token = gl_WorkGroupID.y;
    if (!is_last_workgroup(push.counters, token * (gl_NumWorkGroups.x / CHOSEN) + group, CHOSEN))
        return;
    for (uint i = gl_LocalInvocationID.x; i < count; i += WORKGROUP) {
        uint row = group * count + i;
        if (row >= push.num_outs)
            return;
        float sum = 0;
        [[unroll]] for (uint rank = 0; rank < CHOSEN; ++rank) {
            uint from = token * CHOSEN + rank;
            sum = fma(Floats(push.weights).at[from],
                      Shared(push.outputs).at[from * push.num_outs + row], sum);
        }
        Floats(push.sum).at[token * push.num_outs + row] = sum;
        Floats(push.residual).at[token * push.num_outs + row] += sum;
    }
}
