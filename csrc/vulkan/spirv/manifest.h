/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* activate: 83d1d95de092e8c39a02d233c604fb96 e7414775b3ecd03f7ece7384e9adc46a */
/* attention: be16fa3698c219d123e57f25f61bc782 99380cd37d40a847dbc778d5145e7079 */
/* attention_panel: 2705abd72d2bd0382ab60ba8221da4fd 802488824f843f4fb1261e1b3d70862e */
/* embed: 48a13a233c2046c877e2b0380f11fbcd 29e62ab01f29110c3898b7b26508af38 */
/* expert_down_rows: 2b748a8997f70b16642405dcfebd46d6 fa3c0de39d59e12be5e862f3907af008 */
/* expert_sum: b72e87fbef8c7781d88864ccd93db787 6651424523e8f10883c74eebd6e760e4 */
/* group: 9aad567667e413e974a7dcaa37afa131 5decb6df1dcdeec6d4f1efbf9d96691a */
/* matrix_panel: bfcb8cb6431a7ff5b0a3298fa51b0d8c 8b07de25e4bd50235782d78ef0003077 */
/* norm: 179e2dbc32f934ead27b359374cabbfc faef7509da10a1990d1545de1f9c8366 */
/* product_panel: 4e821411280e2d3e7e3f64f2889a69c7 24db96b101b33ca7fefade6d7466edbb */
/* product_rows: c96bba1542798d36c27fecee43f6f50f c4c4e12a745e8bb655bc43d4ecb09691 */
/* rope_append: 161ff87e8df7323f3fc62e186d844cbc 4714cd86a59f08cdd7df0beae822cf12 */
/* round_rows: 4d8c115250e4ebfdc7a6442bff82cf93 8950e147c58dd94b2d2c78463821c752 */
/* route: d046bf7204856e9253dc53e8228da8de fe225a16cdad31d8e80763f63b12d2c7 */
