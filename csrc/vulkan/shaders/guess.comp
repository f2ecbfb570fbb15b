// Guesses which token the host will draw: the largest logit, or by the weights e^((logit - maximum) /
// temperature) the one in whose share a random number lies. Three stages; grid: parts, of the last 1.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#include "common.glsl"
layout(constant_id = 1) const uint STAGE = 0;

layout(push_constant) uniform Push { gptoss_guess_push push; };

const uint PARTS = GPTOSS_GUESS_PARTS;
const float NOTHING = -3.0e38; // below what any logit but -infinity is

shared float values[WORKGROUP];
shared uint tokens[WORKGROUP];

uint part_size() {
    return (push.vocab_size + PARTS - 1) / PARTS;
}

float largest() {
    float most = NOTHING;
    for (uint part = 0; part < PARTS; ++part)
        most = max(most, Floats(push.parts).at[part]);
    return most;
}

float weight_of(uint token, float maximum) {
    float weight = exp((Floats(push.logits).at[token] - maximum) / push.temperature);
    return weight < push.min_p ? 0 : weight;
}

void find_maximum(uint part) {
    uint id = gl_LocalInvocationID.x, first = part * part_size();
    uint end = min(first + part_size(), push.vocab_size);
    float most = NOTHING;
    uint token = 0;
    for (uint i = first + id; i < end; i += WORKGROUP) {
        float logit = Floats(push.logits).at[i];
        if (logit > most) {
            most = logit;
            token = i;
        }
    }
    values[id] = most;
    tokens[id] = token;
    for (uint step = WORKGROUP / 2; step > 0; step /= 2) {
        barrier();
        if (id >= step)
            continue;
        float other = values[id + step];
        if (other > values[id] || other == values[id] && tokens[id + step] < tokens[id]) {
            values[id] = other;
            tokens[id] = tokens[id + step];
        }
    }
    if (id == 0) {
        Floats(push.parts).at[part] = values[0];
        Words(push.parts).at[PARTS + part] = tokens[0];
    }
}

void sum_weights(uint part) {
    uint first = part * part_size(), end = min(first + part_size(), push.vocab_size);
    float maximum = largest(), sum = 0;
    for (uint i = first + gl_LocalInvocationID.x; i < end; i += WORKGROUP)
        sum += weight_of(i, maximum);
    sum = workgroup_sum(sum);
    if (gl_LocalInvocationID.x == 0)
        Floats(push.parts).at[2 * PARTS + part] = sum;
}

// The first part with the largest maximum.
uint most_likely() {
    uint best = 0;
    for (uint part = 1; part < PARTS; ++part)
        if (Floats(push.parts).at[part] > Floats(push.parts).at[best])
            best = part;
    return Words(push.parts).at[PARTS + best];
}

// In whose share the random number lies: first which part, then which thread's tokens, then which. Where
// rounding lets the shares end before it, the last that has one.
uint draw() {
    float total = 0;
    for (uint part = 0; part < PARTS; ++part)
        total += Floats(push.parts).at[2 * PARTS + part];
    float left = total * (float(Words(push.random).at[0]) * (1.0 / 4294967296.0));
    uint part = 0;
    for (uint i = 0; i < PARTS; ++i) {
        float sum = Floats(push.parts).at[2 * PARTS + i];
        if (sum == 0)
            continue;
        part = i;
        if (left < sum)
            break;
        left -= sum;
    }
    uint id = gl_LocalInvocationID.x, own = (part_size() + WORKGROUP - 1) / WORKGROUP;
    uint end = min((part + 1) * part_size(), push.vocab_size);
    float maximum = largest(), sum = 0;
    for (uint i = part * part_size() + id * own; i < min(end, part * part_size() + (id + 1) * own); ++i)
        sum += weight_of(i, maximum);
    values[id] = sum;
    barrier();
    uint thread = 0;
    for (uint i = 0; i < WORKGROUP; ++i) {
        if (values[i] == 0)
            continue;
        thread = i;
        if (left < values[i])
            break;
        left -= values[i];
    }
    uint first = part * part_size() + thread * own, token = first;
    for (uint i = first; i < min(end, first + own); ++i) {
        float weight = weight_of(i, maximum);
        if (weight == 0)
            continue;
        token = i;
        if (left < weight)
            break;
        left -= weight;
    }
    return token;
}

void main() {
    if (STAGE == GPTOSS_GUESS_MAXIMA) {
        find_maximum(gl_WorkGroupID.x);
    } else if (STAGE == GPTOSS_GUESS_SUMS) {
        sum_weights(gl_WorkGroupID.x);
    } else {
        uint token = push.temperature == 0 ? most_likely() : draw();
        token = min(token, push.vocab_size - 1); // whatever NaN makes of it
        if (gl_LocalInvocationID.x == 0) {
            Words(push.token).at[0] = token;
            Words(push.copy).at[0] = token;
        }
    }
}
