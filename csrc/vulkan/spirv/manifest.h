/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: b5e906c3bc3a8f8dad8ac17fb832e46c e7414775b3ecd03f7ece7384e9adc46a */
/* attention: c5fbe0210e17a4173dcf401a267d4a76 6faeafb41133498f8fc5e0074c86f0e8 */
/* attention_panel: 3cbfd1714190ecbdaecb4094a9704d84 c0801ba1f22ba124084c9edc3451afe4 */
/* embed: 9c5af282d31476c2d9d12247d657e3e2 8cedca523b9800cb15c1df237bd10145 */
/* expert_down_rows: 9f2b6b426bb3b8718393374ca9ee7814 14caad7be408d585923045c5727aae76 */
/* expert_sum: 3b11fe3f44b478077f07e896e255be93 31f609cf0b80e5e7c6e1d5a31a40ee9b */
/* group: d87a610cdea3f2b0fcd7043864d0421c 5decb6df1dcdeec6d4f1efbf9d96691a */
/* guess: a47c0fa40efe20f0779f8fd86743dbd5 a3698561bc3d9eedbed8732ed061b161 */
/* matrix_panel: ec2874a3ae70da77b4fe771bb934d567 fa8c551d069c7b6d22b598a1a178f9d8 */
/* norm: 413f46e86c15ae767248bcd8e17b9511 0dbf8fb5cee3cba36a137cae192dbc75 */
/* product_panel: 04fcb7465ee433e892d5141715bce37b ba6a50403b8473de83674c99a11a5a88 */
/* product_rows: 833d489a25b8ca3a6fc3ad5208260ee8 75fa32e09adaa7833a6c39ae4e2299cb */
/* rope_append: 478aa3c8aa5eac2cc4dfec63e349e98c 54c627879251b92ff6a5139d7c71a539 */
/* round_rows: 9758545eed3a578f2ab38195414e7f7b 45f0431f52a9cf38d911f4102ffef595 */
/* route: d356c89e521591982a1e859813b86428 280f246d435318750bb622235207e357 */
/* route_panel: 417c6a85f6baf8130627ccffddca1900 616faf4d467011575de2fba6bada479a */
