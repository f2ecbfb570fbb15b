/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: 08c99c6e2b21deea785fa96d5c1f2c1a e7414775b3ecd03f7ece7384e9adc46a */
/* attention: ea4ccfa7645d6850b0585074e594100d 6faeafb41133498f8fc5e0074c86f0e8 */
/* attention_panel: 297af67271d6c4aee20d9ced52dd5b8e c0801ba1f22ba124084c9edc3451afe4 */
/* embed: ee05ab3c41b20a0b036a84b671f99f64 53fcded8215c1ca19a3e7f604b709f46 */
/* expert_down_rows: 4c0c9086a52fe8330b18893e8610bcd9 fa3c0de39d59e12be5e862f3907af008 */
/* expert_sum: 3526d78e385293cb8b826ae9eff264bb 31f609cf0b80e5e7c6e1d5a31a40ee9b */
/* group: b49aceddeb4415ba958d14743e542eaf 5decb6df1dcdeec6d4f1efbf9d96691a */
/* guess: d867133614fe1250f8a0ed823aa28550 a3698561bc3d9eedbed8732ed061b161 */
/* matrix_panel: 8b489530c4609136fab8b3ec52c57e2c 8b07de25e4bd50235782d78ef0003077 */
/* norm: 8ca5edbdca1909cbf5c92cef26de417b 0dbf8fb5cee3cba36a137cae192dbc75 */
/* product_panel: 8dd89389d44dcc120dcfd3c3285689e4 24db96b101b33ca7fefade6d7466edbb */
/* product_rows: 099e2e63f9271595e333fc3a03709f96 c4c4e12a745e8bb655bc43d4ecb09691 */
/* rope_append: a954df0eefd2b053a319a413bb8500b1 54c627879251b92ff6a5139d7c71a539 */
/* round_rows: 3fdf428c672de4de6f439c1c210f5aa0 2a073cd8b2a78628b10899c284410ec3 */
/* route: 4ab17e3ecbff7691fcaa60a0f18e1736 120981694bc1f46a05f083ce5348c63b */
/* route_panel: 7cb33ff09c15a750ac4fb72fa8d37931 1cf71c22601d4a4e9d7687e6c5677a5b */
