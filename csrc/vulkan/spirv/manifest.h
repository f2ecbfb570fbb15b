/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* attention: c0141793362281d69680113b0db9d1ec 99380cd37d40a847dbc778d5145e7079 */
/* attention_panel: c521dad8b044319487280e583872c0ec 802488824f843f4fb1261e1b3d70862e */
/* embed: 0e148a22deaddbacaba3eb6bddfec90d 29e62ab01f29110c3898b7b26508af38 */
/* expert_down_rows: f1e425674c75d109c7eee34dce2b5487 fa3c0de39d59e12be5e862f3907af008 */
/* expert_sum: a14eed47984220166e3292edffdfbfcd 6651424523e8f10883c74eebd6e760e4 */
/* group: 70973d5b5256fb93addc281b85a24ff4 5decb6df1dcdeec6d4f1efbf9d96691a */
/* matrix_panel: a90a7a359a6bb86ebe184f0a5742a172 8b07de25e4bd50235782d78ef0003077 */
/* norm: 2ecd77b7e7c527adff61c00568897193 faef7509da10a1990d1545de1f9c8366 */
/* product_panel: bcbf0b5bed0b0ba5e71ec856a89ae02e 24db96b101b33ca7fefade6d7466edbb */
/* product_rows: b9a4d7d18ca01b5ff84aa478d1b287eb c4c4e12a745e8bb655bc43d4ecb09691 */
/* rope_append: 8771856b0aebd4c6c7b33d13c39b4a2b 4714cd86a59f08cdd7df0beae822cf12 */
/* round_rows: 7687c8b182be4ba7d03ec4ebab0d2d45 8950e147c58dd94b2d2c78463821c752 */
/* route: b60191b493067b028d64d50f8f2e3085 fe225a16cdad31d8e80763f63b12d2c7 */
