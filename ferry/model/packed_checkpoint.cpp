#include "ferry/model/packed_checkpoint.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "ferry/checkpoint/new_directory.h"
#include "ferry/checkpoint/packed_file.h"
#include "ferry/model/checkpoint_texts.h"
#include "ferry/model/family.h"
#include "ferry/model/layer_tables.h"
#include "ferry/model/packer.h"
#include "ferry/model/summary.h"

namespace ferry {

namespace {

/// Reads tables as a loader does and writes what comes of it.
class PieceWriter final : public TensorTable {
 public:
  PieceWriter(const Checkpoint& source,
              const WeightChoice& choice,
              Packer& packer,
              PackedFileWriter& file,
              const TensorPlace& at)
      : source_(source),
        choice_(choice),
        packer_(packer),
        file_(file),
        at_(at),
        loader_(packer, at.layer) {}

  void matrix(OwnedMatrix& to,
              const TensorList& tensors,
              std::int64_t k,
              const MatrixPacking& how) override {
    MatrixPacking whole = how;
    whole.columns = {};
    loader_.matrix(to, tensors, k, whole);
    auto tensor = tensors.begin();
    for (const PackedMatrix& strip : to.strips) {
      PackedPiece piece{.form = PackedForm::matrix, .names = {}, .shape = {}, .type = strip.type};
      for (std::int64_t columns = 0; columns < strip.n; columns += tensor++->rows) {
        piece.names.push_back(name_of(tensor->pattern));
        piece.shape.push_back(tensor->rows);
      }
      piece.shape.push_back(k);
      file_.add(std::move(piece),
                {strip.data, strip.panel_bytes() * static_cast<std::size_t>(strip.panels())});
    }
  }

  void vector(std::vector<float>& to, const TensorList& tensors, TensorRole role) override {
    loader_.vector(to, tensors, role);
    for (const auto& [pattern, n] : tensors) add_plain(pattern, {n});
  }

  void taps(std::vector<float>& to, const TensorRows& tensor, std::int64_t taps) override {
    loader_.taps(to, tensor, taps);
    add_plain(tensor.pattern, {tensor.rows, 1, taps});
  }

  void rows(HeldRows& to, const TensorRows& tensor, std::int64_t width, TensorRole role) override {
    loader_.rows(to, tensor, width, role);
    add_plain(tensor.pattern, {tensor.rows, width}, activation_type(choice_.type));
  }

  void ffn(OwnedFfn& /*to*/, const FfnPart& part) override {
    block(part, ffn_layout(source_, choice_, part, at_));
  }

  /// Stays rows: its mixer packs it at every start.
  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)> pack) override {
    loader_.own_way(tensor, k, pack);
    add_plain(tensor.pattern, {tensor.rows, k});
  }

  const GroupMember& member() const override { return loader_.member(); }

  void block(const FfnPart& part, const FfnLayout& layout) {
    const Buffer memory(expert_block_bytes(layout.view(nullptr, nullptr)));
    packer_.block(part, at_, layout, memory.data());
    PackedPiece piece{.form = PackedForm::block,
                      .names = {},
                      .shape = {part.inter, part.hidden},
                      .type = layout.gate_up_type,
                      .down_type = layout.down_type,
                      .biased = part.biased};
    for (const std::string_view pattern : {part.names.gate, part.names.up, part.names.down})
      piece.names.push_back(name_of(pattern));
    file_.add(std::move(piece), {memory.data(), memory.size()});
    if (!part.biased) return;
    // The block has them; these say that the checkpoint is whole.
    add_plain(part.names.gate_bias, {part.inter});
    add_plain(part.names.up_bias, {part.inter});
    add_plain(part.names.down_bias, {part.hidden});
  }

 private:
  std::string name_of(std::string_view pattern) const {
    return tensor_name(source_.config(), pattern, at_.layer, at_.expert);
  }

  /// As the source has it; what is quantised there becomes elements of this type. f32 loses no bit.
  void add_plain(std::string_view pattern,
                 std::vector<std::int64_t> shape,
                 DType quantised_as = DType::f32) {
    const StoredMatrix matrix = source_.matrix(
        {.name = name_of(pattern), .shape = shape, .layer = at_.layer, .expert = at_.expert});
    const DType dtype = matrix.is_plain() ? matrix.dtype : quantised_as;
    std::vector<std::byte> bytes(static_cast<std::size_t>(matrix.rows * matrix.columns) *
                                 dtype_bytes(dtype));
    matrix.read_rows(0, matrix.rows, dtype, bytes.data());
    file_.add({.form = PackedForm::plain,
               .names = {name_of(pattern)},
               .shape = std::move(shape),
               .dtype = dtype},
              bytes);
  }

  const Checkpoint& source_;
  const WeightChoice& choice_;
  Packer& packer_;
  PackedFileWriter& file_;
  const TensorPlace at_;
  LayerPacker loader_;
};

/// Of all tensors, one that is read twice counted twice.
std::uint64_t bytes_to_read(const Checkpoint& source) {
  const ModelConfig& config = source.config();
  std::uint64_t bytes = 0;
  for_each_tensor(unstacked(config), [&](const TensorSpec& spec) {
    const bool twice = config.tied_embeddings && spec.role == TensorRole::embedding;
    bytes += source.stored_bytes(spec) * (twice ? 2 : 1);
  });
  return bytes;
}

void write_weights(const Checkpoint& source,
                   const WeightChoice& choice,
                   Packer& packer,
                   PackedFileWriter& file) {
  const ModelConfig& config = source.config();
  DenseWeights outside;
  PieceWriter table(source, choice, packer, file, {});
  read_embedding(config, table, outside);
  for (int layer = 0; layer < config.layers; ++layer) {
    PieceWriter of_layer(source, choice, packer, file, {.layer = layer});
    read_layer(config, layer, of_layer);
    if (!config.sparse(layer)) continue;
    const FfnPart expert = expert_part(config);
    const FfnLayout layout = expert_layout(source, choice, expert, layer);
    for (ExpertId e = 0; e < config.moe.experts; ++e)
      PieceWriter(source, choice, packer, file, {.layer = layer, .expert = e})
          .block(expert, layout);
  }
  read_head(config, table, outside);
  file.close();
}

}  // namespace

void write_packed(const Checkpoint& source,
                  std::optional<WeightType> wanted,
                  Activations activations,
                  const std::filesystem::path& out,
                  ThreadPool& pool,
                  const LoadProgress& progress) {
  const WeightChoice choice = choose_weights(source, wanted, activations);
  check_activations(source, choice);
  NewDirectory files(out);
  const PackedFile* packed = source.source().packed();
  const std::string asked = wanted ? std::string(weight_type_name(*wanted)) : std::string();
  PackedFileWriter file(files.add(std::string(kPackedFile)),
                        {.asked = packed != nullptr ? packed->choice().asked : asked,
                         .type = choice.type,
                         .plain_stays = choice.plain_stays,
                         .as_stored = choice.as_stored,
                         .int8_rows = choice.int8_rows});
  Packer packer(source, choice, pool, progress, bytes_to_read(source));
  write_weights(source, choice, packer, file);
  nlohmann::json config = config_of(source);
  config["quantization_config"] = {{"quant_method", "ferry_packed"}};
  write_texts(source, config, files);
  files.finish();
}

}  // namespace ferry
