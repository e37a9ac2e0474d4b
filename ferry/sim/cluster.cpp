#include "ferry/sim/cluster.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "ferry/core/error.h"
#include "ferry/sim/traffic.h"

namespace ferry {

namespace {

using Json = nlohmann::json;

constexpr int kMostRanks = 1 << 20;

std::string read_text(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) fail<ConfigError>("{}: cannot be read", file.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

Json parse_json(std::string_view text, const std::string& file) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail<ConfigError>("{}: not JSON", file);
  return json;
}

/// The members of one object; each is asked for by name, and what nobody asked for is an error.
class Members {
 public:
  Members(const Json& object, std::string file, std::string path)
      : object_(object), file_(std::move(file)), path_(std::move(path)) {
    if (!object_.is_object())
      fail<ConfigError>("{}: {} must be an object", file_, path_.empty() ? "it" : path_);
  }

  bool has(const char* name) const { return object_.contains(name); }

  const Json& need(const char* name) {
    if (!has(name)) fail<ConfigError>("{}: {} is missing", file_, full(name));
    asked_.insert(name);
    return object_.at(name);
  }

  /// Finite, and more than `above` or, with `or_equal`, at least that.
  double number(const char* name, double above, bool or_equal = false) {
    const Json& json = need(name);
    const double value = json.is_number() ? json.get<double>() : 0;
    if (!json.is_number() || !std::isfinite(value) || value < above ||
        (!or_equal && value == above)) {
      fail<ConfigError>("{}: {} is {}: must be a number {} {}",
                        file_,
                        full(name),
                        json.dump(),
                        or_equal ? "of at least" : "above",
                        above);
    }
    return value;
  }

  int count(const char* name) {
    const Json& json = need(name);
    if (!json.is_number_integer() || json.get<double>() < 1 || json.get<double>() > kMostRanks) {
      fail<ConfigError>("{}: {} is {}: must be a whole number from 1 to {}",
                        file_,
                        full(name),
                        json.dump(),
                        kMostRanks);
    }
    return json.get<int>();
  }

  int count(const char* name, int otherwise) { return has(name) ? count(name) : otherwise; }

  std::string text(const char* name) {
    const Json& json = need(name);
    if (!json.is_string())
      fail<ConfigError>("{}: {} is {}: must be a text", file_, full(name), json.dump());
    return json.get<std::string>();
  }

  bool flag(const char* name) {
    const Json& json = need(name);
    if (!json.is_boolean())
      fail<ConfigError>("{}: {} is {}: must be true or false", file_, full(name), json.dump());
    return json.get<bool>();
  }

  Origin origin() {
    if (!has("origin")) return Origin::described;
    const std::string name = text("origin");
    for (const Origin origin : {Origin::measured, Origin::described, Origin::guessed})
      if (name == origin_name(origin)) return origin;
    fail<ConfigError>(
        "{}: {} is \"{}\": must be measured, described or guessed", file_, full("origin"), name);
  }

  void finish() const {
    for (const auto& [name, value] : object_.items()) {
      if (!asked_.contains(name))
        fail<ConfigError>("{}: unknown member {}", file_, full(name.c_str()));
    }
  }

  std::string full(const char* name) const { return path_.empty() ? name : path_ + "." + name; }

  const std::string& file() const { return file_; }

 private:
  const Json& object_;
  std::string file_;
  std::string path_;
  std::set<std::string> asked_;
};

ClusterLink parse_link(const Json& json, const std::string& file, std::size_t index, bool last) {
  Members m(json, file, fmt::format("links[{}]", index));
  ClusterLink link;
  link.name = m.text("name");
  link.latency_us = m.number("latency_us", 0, /*or_equal=*/true);
  link.gbytes_per_s = m.number("gbytes_per_s", 0);
  link.messages_per_s = m.number("messages_per_s", 0);
  if (m.has("peer_messages_per_s")) link.peer_messages_per_s = m.number("peer_messages_per_s", 0);
  link.ranks_per_port = m.count("ranks_per_port", 1);
  if (index == 0 && m.has("hosts"))
    fail<ConfigError>(
        "{}: {} must not be there: the first link is within a host", file, m.full("hosts"));
  if (index > 0) link.hosts = last ? m.count("hosts", 0) : m.count("hosts");
  if (m.has("duplex")) {
    const std::string duplex = m.text("duplex");
    if (duplex != "full" && duplex != "half")
      fail<ConfigError>("{}: {} is \"{}\": must be full or half", file, m.full("duplex"), duplex);
    link.full_duplex = duplex == "full";
  }
  link.origin = m.origin();
  m.finish();
  return link;
}

void parse_links(Members& m, Cluster& cluster) {
  const Json& links = m.need("links");
  if (!links.is_array() || links.empty() || links.size() >= kMaxLinkLevels)
    fail<ConfigError>("{}: links must be a list of 1 to {} objects", m.file(), kMaxLinkLevels - 1);
  for (std::size_t i = 0; i < links.size(); ++i)
    cluster.links.push_back(parse_link(links[i], m.file(), i, i + 1 == links.size()));
  if (cluster.hosts > 1 && links.size() == 1)
    fail<ConfigError>("{}: links has none between the {} hosts", m.file(), cluster.hosts);
}

/// Rates of all of a host's threads, as `ferry doctor --measure --json` reports them, are shared
/// out over its ranks.
void take_doctor(Members& m, const std::filesystem::path& file, bool bytes, Cluster& cluster) {
  const std::filesystem::path path = file.parent_path() / m.text("doctor");
  const Json report = parse_json(read_text(path), path.string());
  const auto measured = report.is_object() ? report.find("measured") : report.end();
  if (measured == report.end() || !measured->is_array() || measured->empty())
    fail<ConfigError>("{}: has no \"measured\": write it with ferry doctor --measure --json",
                      path.string());
  Members host(measured->back(), path.string(), "measured");
  const double ranks = cluster.ranks_per_host;
  cluster.memory_gbytes_per_s = host.number("read_gbps", 0) / ranks;
  cluster.tflops = host.number(bytes ? "int8_peak_tops" : "peak_tflops", 0) / ranks;
  cluster.memory_origin = cluster.kernel_origin = Origin::measured;
}

}  // namespace

std::string_view origin_name(Origin origin) {
  switch (origin) {
    case Origin::measured:
      return "measured";
    case Origin::described:
      return "described";
    case Origin::guessed:
      return "guessed";
  }
  return "";
}

std::vector<int> Cluster::spans() const {
  std::vector<int> spans;
  for (const ClusterLink& link : links)
    spans.push_back(ranks_per_host * (link.hosts == 0 ? hosts : link.hosts));
  return spans;
}

void Cluster::check_ranks(int ranks) const {
  if (ranks > hosts * ranks_per_host)
    fail<ConfigError>("{} ranks, but the cluster has {} hosts of {}", ranks, hosts, ranks_per_host);
  if (ranks > ranks_per_host && ranks % ranks_per_host != 0)
    fail<ConfigError>("{} ranks are not a multiple of {} ranks a host", ranks, ranks_per_host);
}

Cluster parse_cluster(std::string_view text,
                      const std::filesystem::path& file,
                      bool bytes_multiply) {
  const Json json = parse_json(text, file.string());
  Members m(json, file.string(), "");
  Cluster cluster;
  cluster.name = m.has("name") ? m.text("name") : file.stem().string();
  cluster.hosts = m.count("hosts");
  cluster.ranks_per_host = m.count("ranks_per_host");
  if (static_cast<double>(cluster.hosts) * cluster.ranks_per_host > kMostRanks)
    fail<ConfigError>("{}: more than {} ranks", file.string(), kMostRanks);
  cluster.threads = m.count("threads", 1);
  parse_links(m, cluster);
  if (m.has("doctor")) take_doctor(m, file, bytes_multiply, cluster);
  if (m.has("memory") || !m.has("doctor")) {
    Members memory(m.need("memory"), file.string(), "memory");
    cluster.memory_gbytes_per_s = memory.number("gbytes_per_s", 0);
    cluster.memory_origin = memory.origin();
    memory.finish();
  }
  if (m.has("kernels") || !m.has("doctor")) {
    Members kernels(m.need("kernels"), file.string(), "kernels");
    cluster.tflops = kernels.number("tflops", 0);
    if (kernels.has("sum_gbytes_per_s"))
      cluster.sum_gbytes_per_s = kernels.number("sum_gbytes_per_s", 0);
    cluster.kernel_origin = kernels.origin();
    kernels.finish();
  }
  if (m.has("copies_overlap")) cluster.copies_overlap = m.flag("copies_overlap");
  if (m.has("start_us")) {
    cluster.start_us = m.number("start_us", 0, /*or_equal=*/true);
    cluster.start_origin = Origin::described;
  }
  m.finish();
  try {
    static_cast<void>(LinkLevels(cluster.hosts * cluster.ranks_per_host, cluster.spans()));
  } catch (const ConfigError& e) {
    fail<ConfigError>("{}: {}", file.string(), e.what());
  }
  return cluster;
}

Cluster read_cluster(const std::filesystem::path& file, bool bytes_multiply) {
  return parse_cluster(read_text(file), file, bytes_multiply);
}

}  // namespace ferry
