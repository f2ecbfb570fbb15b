/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: 6bf2eab4d1e7df00b05fe0ffd21f4992 e7414775b3ecd03f7ece7384e9adc46a */
/* attention: eaeea86a769d1e4e34e481db291ef79e 6faeafb41133498f8fc5e0074c86f0e8 */
/* attention_panel: 18b9216bb9f5e120bc8bfccfba009ebf c0801ba1f22ba124084c9edc3451afe4 */
/* embed: b1e593c48b10e7c3295b0f841b46f558 8cedca523b9800cb15c1df237bd10145 */
/* expert_down_rows: 0205f95bb60f6f9d4f95b90c94e14162 de88623c81c6e64e8373d65e7264f05b */
/* expert_sum: 919640c524952f1fbd7185a1f57838e1 31f609cf0b80e5e7c6e1d5a31a40ee9b */
/* group: d50ed0a2791d9f4e1533b9affe2644a4 5decb6df1dcdeec6d4f1efbf9d96691a */
/* guess: 8047ce656d7d15c7f3a1dc7d80abcf4d a3698561bc3d9eedbed8732ed061b161 */
/* matrix_panel: 71a724e1ac321d7e993607bcea20cc19 fa8c551d069c7b6d22b598a1a178f9d8 */
/* norm: 4572fa34f0de55ba27e405e41edd3c81 0dbf8fb5cee3cba36a137cae192dbc75 */
/* product_panel: 241996ad18e3e69b8e15ab5b43d366cc ba6a50403b8473de83674c99a11a5a88 */
/* product_rows: 3b2da91e5ea51c556c64d6b4cb9a2d3c b4e4d2b9e6aee2ce7a27f45a7643f9df */
/* rope_append: a78c7764971a57cd067de3a82ae3ed3f 54c627879251b92ff6a5139d7c71a539 */
/* round_rows: b8d68c52490b1ccd61015144b13e7974 2a073cd8b2a78628b10899c284410ec3 */
/* route: d7c16666c4e9ff184f2a3b3aede6319c 280f246d435318750bb622235207e357 */
/* route_panel: cd166d8409f42765a060696b2ae8a4a6 5e47ca06bb6b4935b7c01ec823169e51 */
