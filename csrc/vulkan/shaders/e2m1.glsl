// Elements j and j + 4 of the eight in a word of E2M1 codes, as halves that are 2^-14 of the values: sign
// and magnitude of E2M1 are those of a half, subnormals included. push_constants.h has the layout,
// which makes this few instructions.
uint e2m1_halves(uint word, uint j) {
    return j == 0   ? word & 0x8E008E00u
           : j == 1 ? word << 3 & 0x8E008E00u
                    : word << 3 * j & 0x0E000E00u | word << j - 1 & 0x80008000u;
}
