// Cooperative matrices that are filled, and read, in registers: where the device has their elements as
// fragments.comp finds them. Invocation 4 g + t of a subgroup has
//   of a MatrixA (rows, columns): (g, 2t), (g, 2t + 1), (g, 2t + 8), (g, 2t + 9), and the same of g + 8;
//   of a MatrixB: (2t, g), (2t + 1, g), (2t + 8, g), (2t + 9, g);
//   of a MatrixC: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1);
//   of a WideC, 16 x 16: the elements of a MatrixA.
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_shuffle : require

#define MatrixA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatrixB coopmat<float16_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseB>
#define MatrixC coopmat<float, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator>
#define WideB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define WideC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

uint pack_halves(float a, float b) {
    return packFloat2x16(f16vec2(a, b));
}

MatrixA matrix_a(uint pair0, uint pair1, uint pair2, uint pair3) {
    MatrixA a;
    f16vec2 v = unpackFloat2x16(pair0);
    a[0] = v.x;
    a[1] = v.y;
    v = unpackFloat2x16(pair1);
    a[2] = v.x;
    a[3] = v.y;
    v = unpackFloat2x16(pair2);
    a[4] = v.x;
    a[5] = v.y;
    v = unpackFloat2x16(pair3);
    a[6] = v.x;
    a[7] = v.y;
    return a;
}

MatrixB matrix_b(uint pair0, uint pair1) {
    MatrixB b;
    f16vec2 v = unpackFloat2x16(pair0);
    b[0] = v.x;
    b[1] = v.y;
    v = unpackFloat2x16(pair1);
    b[2] = v.x;
    b[3] = v.y;
    return b;
}
