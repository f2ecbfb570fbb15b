/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: 8d8add1607e3e3bc68fc1ca9764fe8df e7414775b3ecd03f7ece7384e9adc46a */
/* attention: 74965f572347336cffbb801033c9b6bb 6faeafb41133498f8fc5e0074c86f0e8 */
/* attention_panel: 117af62de20ddbaa5be842bb2159c4aa aed6371ef28a6e7752bd02f320f9f272 */
/* embed: eeae6f67d33e161e83601f59513230f3 53fcded8215c1ca19a3e7f604b709f46 */
/* expert_down_rows: 0936b2c17bc459d9b25ded41d6e34e4e fa3c0de39d59e12be5e862f3907af008 */
/* expert_sum: 7228e56ac55a9382a5cbfee0de22857e 6651424523e8f10883c74eebd6e760e4 */
/* group: ddc5ff4d84e5c1dfc432596ab24508a5 5decb6df1dcdeec6d4f1efbf9d96691a */
/* guess: 991572f3c4faf8acd07a6eb3fcf0c92f a3698561bc3d9eedbed8732ed061b161 */
/* matrix_panel: cae5f36e350024b7bcaf5ff2663a84cd 8b07de25e4bd50235782d78ef0003077 */
/* norm: a27e3725b022a8a61b44ca59e3ccb361 faef7509da10a1990d1545de1f9c8366 */
/* product_panel: b845388dcdb3a62eb891fc17cf9e9a24 24db96b101b33ca7fefade6d7466edbb */
/* product_rows: 2e7e3d453d0623bb8336256315d0cace c4c4e12a745e8bb655bc43d4ecb09691 */
/* rope_append: 81b5be00429439d7d6396b505214b304 11b4ced1cd5f58fbdf8819b0b5e94fc1 */
/* round_rows: 77320933beca6e06b33f327d127f23c5 8950e147c58dd94b2d2c78463821c752 */
/* route: 41005c2f167df9553e57a646e4b445a4 fe225a16cdad31d8e80763f63b12d2c7 */
