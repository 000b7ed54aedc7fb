// The C interface of the native CPU engine: plain structs and pointers, called through ctypes (engines/native.py mirrors
// the structs field by field). All strides are in elements; the innermost stride of every tensor is 1.
#pragma once

#include <cstdint>

#define SL_PUBLIC __attribute__((visibility("default")))

extern "C" {

constexpr int64_t SL_QUERIES = 192;  // queries per panel: a multiple of 3 vectors of any width and of 6 rows
constexpr int64_t SL_WIDEST = 512;   // dimensions of a query, a key or a value
constexpr int64_t SL_KEYS = 96;      // keys per block: scores of one panel and block stay in cache from product to product

// Which blocks of keys a panel of queries sees. Head h of batch entry b follows pattern p = pattern[b * heads + h], which
// lists, for each panel, entries start[p * panels + panel] … start[p * panels + panel + 1]; an entry is a block of keys and,
// where the block is partly hidden, the index of its bits: SL_KEYS rows of SL_QUERIES bits, 1 = visible (-1: all visible).
struct sl_blocks {
    const int32_t* pattern;
    const int64_t* start;
    const int32_t* block;
    const int32_t* bits_of;
    const uint8_t* bits;
};

struct sl_tensor {
    const float* data;
    int64_t batch, head, row;
};

// The map phi of products: identity, softcap * tanh(x / softcap), or -arccosh(-x), the distance on a hyperboloid.
enum sl_map { SL_IDENTITY, SL_SOFTCAP, SL_LORENTZ };

// How scores become weights. All but softmax are for sl_entmax, and for sl_backward after it.
enum sl_rule { SL_SOFTMAX, SL_ENTMAX15, SL_SPARSEMAX };

// Where `on`, weights are kept where a hash of seed and place is at least `threshold`, and multiplied by `scale`.
struct sl_dropout {
    uint32_t on, threshold, seed;  // seed: mixed already (engines/dropout.py)
    float scale;
};

// softmax(s) v over what `blocks` leaves visible, and the moments of its distribution, where
// s = (phi(scale q k^T + key_bias) + relative + dense) / temperature, or u . tanh(q + k) in the place of phi's value.
struct sl_lookup {
    int64_t batch, heads, kv_heads, queries, keys, width, value_width;
    sl_tensor query, key, value;
    float scale;
    const float* additive;  // u, (H, E) with a stride, or null
    int64_t additive_head;
    const float* key_bias;  // (B, H, S) with strides, or null
    int64_t key_bias_batch, key_bias_head;
    int32_t map;  // sl_map
    float softcap;
    const float* relative;  // (H, L + S - 1), or null: a bias by i - j, for row i of the queries and j of the keys at [i - j + S - 1]
    int64_t relative_head;
    const float* dense;  // (B, H, L, S) with strides, or null
    int64_t dense_batch, dense_head, dense_row, dense_column;
    float inverse_temperature;
    const float* inverse_temperatures;  // (B, H, L) contiguous instead, or null
    sl_dropout dropout;
    sl_blocks blocks;
    const uint8_t* seen;  // sl_decode: bytes (B, H, L, S) with strides, 1 where visible; null where all is
    int64_t seen_batch, seen_head, seen_row;
    int64_t query_position, key_position;  // of the first query and key: distances are |i - j|
    const int64_t* query_positions;        // of each, (L,) padded to whole panels; null where they are consecutive, but in sl_decode
    const int64_t* first_sink;             // (B,) position of the first of the `sinks` keys that sink_mass counts
    int64_t sinks;
    int32_t statistics;                    // 0: average, max_logit, log_z and visible only
    int32_t threads;
    int32_t rule;  // sl_rule
};

// What a lookup gives: average (B, H, L, Ev) contiguous; planes (B, H, L) contiguous. The second row follows from the first;
// null where nobody wants it.
struct sl_summary {
    float *average, *max_logit, *log_z, *excess, *entropy, *expected_logit_var, *collision, *logit_mean, *logit_var, *sink_mass,
        *distance;
    float *logsumexp, *max_weight, *expected_logit, *entropy_ratio, *effective_keys, *jacobian_trace;
    int64_t *visible, *argmax;
};

// 0; 1 where something that is not finite was met, 2 where memory ran out: the result is then not to be used.
SL_PUBLIC int32_t sl_forward(const sl_lookup* lookup, const sl_summary* out);

// What entmax 1.5 and sparsemax give (csrc/entmax.h); sums as in src/softlookup/outcome.py. slopes: (B, H, L, Ev), the values'
// average by the slopes of the weights, null where nobody wants it. From `logsumexp` on with statistics only.
struct sl_outcome {
    float *average, *slopes, *total, *max_logit, *offset;
    int64_t* visible;
    float *logsumexp, *max_weight, *log_weight, *square, *first, *spread, *logit_mean, *logit_var, *jacobian_trace, *sink_mass, *distance;
    int64_t *argmax, *support;
};

SL_PUBLIC int32_t sl_entmax(const sl_lookup* lookup, const sl_outcome* out);

// The way back. Coefficients are those of docs/semantics.md, (B, H, L) each or null where 0, with what p = e^t / Z multiplies
// already divided by Z: dS = e^t (dP + c0 + c1 t + c2 t^2 + c3 e^t + sink [j is a sink] + distance |i - j|) + c4 + c5 t.
// After sl_entmax dS = slope (dP + c0), inverse_z is 1, c1 the offset of the threshold, and the others are null.
struct sl_upstream {
    sl_tensor average;  // gradient of the average, data null where there is none
    const float *max_logit, *inverse_z, *c0, *c1, *c2, *c3, *c4, *c5, *sink, *distance;
};

// Gradients, contiguous: query (parts, B, H, L, E), one for each part of the keys, to be summed; key (B, Hkv, S, E), value
// (B, Hkv, S, Ev). Those that begin with `parts` are summed by whoever calls; all but these three must be zeros before.
struct sl_gradients {
    float *query, *key, *value;
    float* key_bias;     // (B, H, S) or null
    float* relative;     // (parts, B, H, L + S - 1) or null
    float* additive;     // (parts, B, H, E) or null
    float* temperature;  // (parts, B, H, L) or null: sum of dS s, which is minus the temperature times its gradient
    float* dense;        // (B, H, L, S) with strides or null; 0 where the bias is the same all along, and then its sum
    int64_t dense_batch, dense_head, dense_row, dense_column;
    int64_t parts;
};

SL_PUBLIC int32_t sl_backward(const sl_lookup* lookup, const sl_upstream* upstream, const sl_gradients* out);

// The same for few queries after sl_decode, in one part and without gradients of biases and temperatures but `key_bias`:
// `blocks` is not read.
SL_PUBLIC int32_t sl_backward_few(const sl_lookup* lookup, const sl_upstream* upstream, const sl_gradients* out);

// What each key received, (B, H, S), zeros before: sum over queries of e^(s - max_logit) inverse_z, both (B, H, L).
SL_PUBLIC int32_t sl_received(const sl_lookup* lookup, const float* max_logit, const float* inverse_z, float* out);

// A block of scores (rows, columns) that something else computed, into weights in place and into the running moments of its
// rows: state, one number per row, begins as zeros, m as -inf and best as -1 (null: not wanted).
struct sl_fold {
    float* scores;
    int64_t rows, columns, entry_rows;  // entry_rows: rows of one pair of batch entry and key-value head
    const uint8_t* seen;                // bytes, 1 where visible, with strides; null where all is
    int64_t seen_entry, seen_row;
    int64_t position;                // of the first column's key
    const int64_t* query_position;   // (queries,) positions that repeat for every query head, or null
    int64_t queries;
    const int64_t* first_sink;  // one per entry
    int64_t sinks;
    int32_t statistics, threads;
    float *m, *z, *mean, *var, *c, *distance, *sink, *count, *flat_mean, *flat_var, *fade;
    int64_t* best;
};

// The moments and the sum of values (rows, whole vectors) of some keys.
struct sl_part {
    sl_fold moments;
    float* average;
};

// sl_forward for few queries: `blocks` is not read.
SL_PUBLIC int32_t sl_decode(const sl_lookup* lookup, const sl_summary* out);

SL_PUBLIC void sl_fold_block(const sl_fold* fold);

// Steps of linear attention: query, key (B, H, L, E), value (B, H, L, Ev); state (B, H, E, Ev) contiguous, before them and then
// after; out (B, H, L, Ev) contiguous. What is not finite reaches steps that do not read it.
struct sl_sequence {
    int64_t batch, heads, steps, width, value_width;
    sl_tensor query, key, value;
    float *state, *out;
    int32_t threads;
};

// 0, or 2 where memory ran out: the state is then not to be used.
SL_PUBLIC int32_t sl_recur(const sl_sequence* sequence);

SL_PUBLIC const char* sl_instructions(void);  // which set of vector instructions was chosen for this processor
}
