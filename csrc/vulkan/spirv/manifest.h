/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: f57a1b49a31ba9365fd8dcf5205bb21b e7414775b3ecd03f7ece7384e9adc46a */
/* attention: f58e0200d7f83624d090cb755bf6afec 6faeafb41133498f8fc5e0074c86f0e8 */
/* attention_panel: bcadbe8517f25d0504d88e5d0bdd257c c0801ba1f22ba124084c9edc3451afe4 */
/* embed: 9dc8a802322a599167ba94fd43c01091 8cedca523b9800cb15c1df237bd10145 */
/* expert_down_rows: c5fdce8b5c5060a724abe6380c5a184c 94091c1ef94226c68a7da738f97215ee */
/* expert_sum: 38dc8048aba17a4a387fced10ade8fe2 31f609cf0b80e5e7c6e1d5a31a40ee9b */
/* group: 9744fd3f3ed7cecf0f4b367aa924bcef 5decb6df1dcdeec6d4f1efbf9d96691a */
/* guess: e5ee6653f37e40f0e4cf5ee949197878 a3698561bc3d9eedbed8732ed061b161 */
/* matrix_panel: b6c2a236882d7c0b7aeacd46bbe34fc6 fa8c551d069c7b6d22b598a1a178f9d8 */
/* norm: 3615a86d569074aac11db8a901e2b860 0dbf8fb5cee3cba36a137cae192dbc75 */
/* product_panel: aeca6efaa2eb9de886cac51aea21ff98 ba6a50403b8473de83674c99a11a5a88 */
/* product_rows: 28cec64f05c7c06d00516e78b7d3cf27 a69e1944e615f752a442c7f184b83d99 */
/* rope_append: 559053b23ebfbd7e940d5c88469def4a 54c627879251b92ff6a5139d7c71a539 */
/* round_rows: edc122044a3d52d16fde664b2f5557e1 2a073cd8b2a78628b10899c284410ec3 */
/* route: bbcea3ca16facbc8cef0cc119c1ac621 280f246d435318750bb622235207e357 */
/* route_panel: 71093a29eecbb87245b0fa51db84802a 5e47ca06bb6b4935b7c01ec823169e51 */
