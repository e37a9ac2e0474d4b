// oneDNN's experts: three products an expert, the gating as post-operations of the first. Weights
// are in the layout that oneDNN asks for. Its own threads are off: a pool's thread takes whole
// experts, which spares a fork and join for each product.
#include <omp.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "bench/experts_peer.h"
#include "ferry/buffer.h"

namespace ferry {

namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;
using Descriptor = dnnl::memory::desc;

/// Rows for which the layout of weights is chosen: what an expert has of a long prompt.
constexpr std::int64_t kTypicalRows = 64;

class OneDnnExperts : public ExpertsPeer {
 public:
  explicit OneDnnExperts(const Weights& w)
      : hidden_(w.hidden),
        inter_(w.inter),
        into_(product(kTypicalRows, {{hidden_, inter_}, Type::bf16, Tag::any}, Type::bf16, {})
                  .weights_desc()),
        out_of_(product(kTypicalRows, {{inter_, hidden_}, Type::bf16, Tag::any}, Type::f32, {})
                    .weights_desc()) {
    for (int e = 0; e < w.experts; ++e) {
      experts_.push_back({in_layout(w.gate, into_, {hidden_, inter_}),
                          in_layout(w.up, into_, {hidden_, inter_}),
                          in_layout(w.down, out_of_, {inter_, hidden_})});
    }
  }

  std::string name() const override { return "onednn"; }

  void run(ThreadPool& pool,
           std::span<const std::int32_t> counts,
           const std::byte* in,
           float* out) override {
    std::vector<std::int64_t> first(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), first.begin(), std::int64_t{0});
    workers_.resize(static_cast<std::size_t>(pool.size()));
    pool.parallel_for(std::ssize(counts), 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      omp_set_num_threads(1);  // of this thread's products
      dnnl::stream stream(engine_);
      for (std::int64_t e = begin; e < end; ++e) {
        const auto at = static_cast<std::size_t>(e);
        if (counts[at] == 0) continue;
        run_expert(stream,
                   experts_[at],
                   counts[at],
                   in + first[at] * hidden_ * 2,
                   out + first[at] * hidden_,
                   workers_[static_cast<std::size_t>(worker)]);
      }
    });
  }

 private:
  struct Expert {
    dnnl::memory gate, up, down;
  };

  /// Keeps no state, so that several threads may run it: scratch is the caller's.
  struct Product {
    explicit Product(const dnnl::matmul::primitive_desc& description)
        : matmul(description), scratch(description.scratchpad_desc()) {}

    dnnl::matmul matmul;
    Descriptor scratch;
  };

  /// The products of one number of rows.
  struct Products {
    Product up, gate, down;
  };

  /// What one thread needs.
  struct Worker {
    Buffer between;  // up, then gated
    Buffer scratch;

    static std::byte* room(Buffer& buffer, std::size_t bytes) {
      if (buffer.size() < bytes) buffer = Buffer(bytes);
      return buffer.data();
    }
  };

  using Description = dnnl::matmul::primitive_desc;

  Description product(std::int64_t rows,
                      const Descriptor& weights,
                      Type out,
                      const dnnl::post_ops& after) const {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    attributes.set_post_ops(after);
    const auto dims = weights.dims();
    return {{{{rows, dims[0]}, Type::bf16, Tag::ab}, weights, {{rows, dims[1]}, out, Tag::ab}},
            attributes,
            engine_};
  }

  /// Checkpoints hold matrices [n, k], the transposed of what is wanted.
  dnnl::memory in_layout(const std::byte* source,
                         const Descriptor& wanted,
                         const dnnl::memory::dims& kn) {
    const dnnl::memory plain({kn, Type::bf16, Tag::ba}, engine_, const_cast<std::byte*>(source));
    dnnl::memory packed(wanted, engine_);
    dnnl::stream stream(engine_);
    dnnl::reorder(plain, packed).execute(stream, const_cast<dnnl::memory&>(plain), packed);
    stream.wait();
    return packed;
  }

  const Products& products(std::int64_t rows) {
    const std::lock_guard lock(mutex_);
    const auto found = products_.find(rows);
    if (found != products_.end()) return found->second;
    dnnl::post_ops gating;
    gating.append_eltwise(1.0F, dnnl::algorithm::eltwise_swish, 1.0F, 0.0F);
    gating.append_binary(dnnl::algorithm::binary_mul, {{rows, inter_}, Type::bf16, Tag::ab});
    Products made{Product(product(rows, into_, Type::bf16, {})),
                  Product(product(rows, into_, Type::bf16, gating)),
                  Product(product(rows, out_of_, Type::f32, {}))};
    return products_.emplace(rows, std::move(made)).first->second;
  }

  void run_expert(dnnl::stream& stream,
                  const Expert& expert,
                  std::int64_t rows,
                  const std::byte* in,
                  float* out,
                  Worker& worker) {
    const auto bytes = static_cast<std::size_t>(rows * inter_ * 2);
    std::byte* between = Worker::room(worker.between, 2 * bytes);
    const auto memory = [&](std::int64_t width, Type type, const void* data) {
      return dnnl::memory({{rows, width}, type, Tag::ab}, engine_, const_cast<void*>(data));
    };
    const auto run = [&](const Product& product, std::unordered_map<int, dnnl::memory> arguments) {
      std::byte* scratch = Worker::room(worker.scratch, product.scratch.get_size() + 1);
      arguments.emplace(DNNL_ARG_SCRATCHPAD, dnnl::memory(product.scratch, engine_, scratch));
      product.matmul.execute(stream, arguments);
    };
    const dnnl::memory from = memory(hidden_, Type::bf16, in);
    const dnnl::memory up = memory(inter_, Type::bf16, between);
    const dnnl::memory gated = memory(inter_, Type::bf16, between + bytes);
    const dnnl::memory to = memory(hidden_, Type::f32, out);
    const Products& p = products(rows);
    run(p.up, {{DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, expert.up}, {DNNL_ARG_DST, up}});
    run(p.gate,
        {{DNNL_ARG_SRC, from},
         {DNNL_ARG_WEIGHTS, expert.gate},
         {DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1, up},
         {DNNL_ARG_DST, gated}});
    run(p.down, {{DNNL_ARG_SRC, gated}, {DNNL_ARG_WEIGHTS, expert.down}, {DNNL_ARG_DST, to}});
    stream.wait();
  }

  std::int64_t hidden_, inter_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};  // before what is made with it
  Descriptor into_, out_of_;                         // layouts of weights
  std::vector<Expert> experts_;
  std::mutex mutex_;
  std::map<std::int64_t, Products> products_;  // by rows
  std::vector<Worker> workers_;
};

}  // namespace

std::unique_ptr<ExpertsPeer> make_experts_peer(const ExpertsPeer::Weights& weights) {
  return std::make_unique<OneDnnExperts>(weights);
}

}  // namespace ferry
