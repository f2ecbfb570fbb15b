/* Made by scripts/shaders: SHA-256 of source and includes, of SPIR-V. */
/* attention: db689041fe7b5e696564e993ac386f69 3c55f7ff4f0dfb9896cd5fd3608cff04 */
/* embed: 9d8626df707c3fd6981aaba25aa5dc18 038d1fe9da60893cd6c2532635099537 */
/* expert_down_rows: 203279f5fb5450a66fef618458efbc94 49e2b6324e338b12f87b72b51d3f10f9 */
/* expert_sum: 749ec178e5d7ed01864c89c08fe19513 47df73d57898082efe27b055fc2531a1 */
/* group: 787d814e4ddfd03e863eae49ad9bc0af 2a595bb9f5488bcc21fbd850d3b05d88 */
/* matrix_panel: a661ad46af84874aa11ce093c4429ef6 6fe9b2fb7f2b571dfdb70d4f57d9eb4f */
/* norm: d91d5282c578bb14e226c5aff57882bb aa9b5e6dc9b8eb4e3612221060211df2 */
/* product_panel: 8d6c2e8a3de8c133086fa184f95e16df 33fcc0ea396acbe080675147f85a5d1e */
/* product_rows: cf413f91a4e1c7636d1ae3412f11a176 54b8ce9efc6a73137b247973581a8ee9 */
/* rope_append: 42e8ee13bacb347c245ceddd65f55cdb 8d83c95744a9ed36fdc873e7e3daab37 */
/* round_rows: 17e494e730216cf8d38e56a29707bb18 c69cdbe98f139f5139581f36434cf2df */
/* route: 001b39d85a870acc0fcad10651d93d83 cee6758c5193c65105893fdbc6b0ff0a */
