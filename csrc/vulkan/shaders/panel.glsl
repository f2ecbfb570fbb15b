// Which tokens a tile of a panel product has. The shader has HAS_EXPERTS and push, a gptoss_product_push.
struct Tile {
    uint expert, first, count;
};

// Without experts a tile is 64 tokens in a row; with them group.comp has made a list. count: 0 beyond it.
Tile find_tile() {
    uint index = gl_WorkGroupID.y;
    if (!HAS_EXPERTS) {
        uint first = index * GPTOSS_TILE_TOKENS;
        return Tile(0, first, min(push.num_tokens - first, GPTOSS_TILE_TOKENS));
    }
    if (index >= Words(push.experts).at[0])
        return Tile(0, 0, 0);
    uint at = 1 + 3 * index;
    return Tile(Words(push.experts).at[at], Words(push.experts).at[at + 1],
                Words(push.experts).at[at + 2]);
}

// The line of the output for a token of the tile.
uint output_line(Tile tile, uint token) {
    if (token >= tile.count)
        return 0;
    return HAS_EXPERTS ? Words(push.routes).at[tile.first + token] : tile.first + token;
}

// The line of x for a line of the output.
uint input_line(uint line) {
    return push.first_token + (HAS_EXPERTS ? line / push.num_chosen : line);
}
