// Kernels for hand-written plans. `p` holds what compiled kernels have as constants: inputs, outputs, taps, rows, the
// elements between rows of the input and of the output.
typedef int i32;
enum { IN, OUT, TAPS, ROWS, PITCH, OUT_PITCH };

static void conv_row(const float* x, const i32* table, const float* w, const i32* p, float* y) {
  for (i32 o = 0; o < p[OUT]; ++o) y[o] = 0;
  for (i32 k = 0; k < p[TAPS]; ++k) {
    for (i32 i = 0; i < p[IN]; ++i) {
      for (i32 o = 0; o < p[OUT]; ++o) y[o] += w[(k * p[IN] + i) * p[OUT] + o] * x[table[k] + i];
    }
  }
}

// y = sum over taps of w[tap] (in, out) . x[tap]
i32 conv(const float* x, const i32* table, const float* w, const i32* p, float* y) {
  conv_row(x, table, w, p, y);
  return 0;
}

i32 conv_rows(const float* x, const i32* table, const float* w, const i32* p, float* y) {
  for (i32 r = 0; r < p[ROWS]; ++r) conv_row(x + r * p[PITCH], table, w, p, y + r * p[OUT_PITCH]);
  return 0;
}

static void run_row(const float* x, const float* w, const i32* p, float* y) {
  for (i32 o = 0; o < p[OUT]; ++o) y[o] = 0;
  for (i32 i = 0; i < p[TAPS] * p[IN]; ++i) {
    for (i32 o = 0; o < p[OUT]; ++o) y[o] += w[i * p[OUT] + o] * x[i];
  }
}

i32 conv_run(const float* x, const float* w, const i32* p, float* y) {
  run_row(x, w, p, y);
  return 0;
}

i32 conv_run_rows(const float* x, const float* w, const i32* p, float* y) {
  for (i32 r = 0; r < p[ROWS]; ++r) run_row(x + r * p[PITCH], w, p, y + r * p[OUT_PITCH]);
  return 0;
}

// As compiled kernels for rows that were gathered: four, what each reads side by side.
i32 conv_apart(const float* x, const i32* table, const float* w, const i32* p, float* y) {
  for (i32 r = 0; r < 4; ++r) conv_row(x + r * p[TAPS] * p[IN], table, w, p, y + r * p[OUT]);
  return 0;
}

// share: this call's share of the outputs, and the number of shares.
static void conv_row_share(const float* x, const i32* table, const float* w, const i32* p, const i32* share, float* y) {
  const i32 end = p[OUT] * (share[0] + 1) / share[1];
  for (i32 o = p[OUT] * share[0] / share[1]; o < end; ++o) {
    y[o] = 0;
    for (i32 k = 0; k < p[TAPS]; ++k) {
      for (i32 i = 0; i < p[IN]; ++i) y[o] += w[(k * p[IN] + i) * p[OUT] + o] * x[table[k] + i];
    }
  }
}

i32 conv_shared(const float* x, const i32* table, const float* w, const i32* p, const i32* share, float* y) {
  conv_row_share(x, table, w, p, share, y);
  return 0;
}

i32 conv_shared_apart(const float* x, const i32* table, const float* w, const i32* p, const i32* share, float* y) {
  for (i32 r = 0; r < 4; ++r) conv_row_share(x + r * p[TAPS] * p[IN], table, w, p, share, y + r * p[OUT]);
  return 0;
}

i32 conv_run_apart(const float* x, const float* w, const i32* p, float* y) {
  for (i32 r = 0; r < 4; ++r) run_row(x + r * p[TAPS] * p[IN], w, p, y + r * p[OUT_PITCH]);
  return 0;
}

// Frame x becomes TAPS frames: y[u] = w[u] x
i32 upsample(const float* x, const float* w, const i32* p, float* y) {
  for (i32 u = 0; u < p[TAPS]; ++u) {
    for (i32 i = 0; i < p[IN]; ++i) y[u * p[IN] + i] = w[u] * x[i];
  }
  return 0;
}

// y = w[0] h + x
i32 leaky(const float* x, const float* h, const float* w, const i32* p, float* y) {
  for (i32 i = 0; i < p[IN]; ++i) y[i] = w[0] * h[i] + x[i];
  return 0;
}

// y = x, the number of the frame, the length of the stream or -1
static void number_row(const float* x, const long long* n, i32 row, float* y) {
  y[0] = x[0];
  y[1] = (float)(n[0] + row);
  y[2] = (float)n[1];
}

i32 numbers(const float* x, const long long* n, float* y) {
  number_row(x, n, 0, y);
  return 0;
}

i32 numbers_rows(const float* x, const long long* n, float* y) {
  for (i32 r = 0; r < 2; ++r) number_row(x + r, n, r, y + 3 * r);
  return 0;
}

// The sum of five frames of a ring.
i32 ring(const float* x, const i32* slot, float* y) {
  *y = 0;
  for (i32 i = 0; i < 5; ++i) *y += x[(slot[0] + i) % slot[1]];
  return 0;
}

i32 fails(const float* x, const float* w, const i32* p, float* y) {
  (void)x, (void)w, (void)p, (void)y;
  return 7;
}
