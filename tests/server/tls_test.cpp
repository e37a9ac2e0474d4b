// HTTPS, with a certificate made here.
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "server/echo.h"
#include "support/files.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using test::Echo;
using test::quick;

constexpr const char* kPassword = "open sesame";

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File create(const std::filesystem::path& path) {
  return {std::fopen(path.c_str(), "w"), &std::fclose};
}

/// A certificate of 127.0.0.1 that signs itself, and its key, also with a password.
class Tls : public testing::Test {
 protected:
  void SetUp() override {
    const std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)> key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
    const std::unique_ptr<X509, void (*)(X509*)> cert(X509_new(), &X509_free);
    X509_set_version(cert.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert.get()), 3600);
    X509_set_pubkey(cert.get(), key.get());
    X509_NAME* name = X509_get_subject_name(cert.get());
    X509_NAME_add_entry_by_txt(
        name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("127.0.0.1"), -1, -1, 0);
    X509_set_issuer_name(cert.get(), name);
    ASSERT_NE(X509_sign(cert.get(), key.get(), EVP_sha256()), 0);
    ASSERT_EQ(PEM_write_X509(create(cert_).get(), cert.get()), 1);
    write_key(key_, key.get(), nullptr);
    write_key(locked_, key.get(), kPassword);
    const std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)> other(EVP_EC_gen("P-256"), &EVP_PKEY_free);
    write_key(other_, other.get(), nullptr);
  }

  static void write_key(const std::filesystem::path& path, EVP_PKEY* key, const char* password) {
    ASSERT_EQ(PEM_write_PrivateKey(create(path).get(),
                                   key,
                                   password ? EVP_aes_128_cbc() : nullptr,
                                   reinterpret_cast<const unsigned char*>(password),
                                   password ? static_cast<int>(std::strlen(password)) : 0,
                                   nullptr,
                                   nullptr),
              1);
  }

  HttpOptions options(const std::string& key) const {
    HttpOptions options = quick();
    options.max_body_bytes = 1U << 20;
    options.ssl_certfile = cert_;
    options.ssl_keyfile = key;
    return options;
  }

  /// What curl says, which trusts our certificate alone.
  std::string curl(const Echo& echo, const std::string& arguments, const std::string& path) const {
    const std::string command = "curl -sS -m 20 --cacert " + cert_ + " " + arguments +
                                " https://127.0.0.1:" + std::to_string(echo.server.port()) + path +
                                " 2>&1";
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> out(popen(command.c_str(), "r"), &pclose);
    std::string all;
    std::array<char, 4096> part{};
    for (std::size_t n; (n = std::fread(part.data(), 1, part.size(), out.get())) > 0;)
      all.append(part.data(), n);
    return all;
  }

  static std::string refusal(const HttpOptions& options) {
    try {
      const HttpServer server(options);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  }

  const test::TempDir directory_;
  const std::string cert_ = directory_.path() / "cert.pem", key_ = directory_.path() / "key.pem",
                    locked_ = directory_.path() / "locked.pem",
                    other_ = directory_.path() / "other.pem";
};

TEST_F(Tls, CurlIsAnswered) {
  Echo echo(options(key_));
  EXPECT_EQ(curl(echo, "-d hello", "/echo"), "hello");
  EXPECT_EQ(curl(echo, "", "/open -o /dev/null") + curl(echo, "", "/open"), "{}");
  std::ofstream(directory_.path() / "long") << std::string(1000000, 'x');
  const std::string file = (directory_.path() / "long").string();
  EXPECT_EQ(curl(echo, "--data-binary @" + file, "/echo"), std::string(1000000, 'x'));
  // Until somebody has had enough of it.
  EXPECT_GT(curl(echo, "-N", "/endless 2>/dev/null | head -c 300000 | tail -c 1000").size(), 999U);
  for (int i = 0; i < 500 && echo.streams_ended == 0; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(echo.streams_ended, 1);
}

TEST_F(Tls, KeysMayHaveAPasswordOrStandBesideTheCertificate) {
  HttpOptions locked = options(locked_);
  locked.ssl_keyfile_password = kPassword;
  EXPECT_EQ(curl(Echo(locked), "-d hello", "/echo"), "hello");
  std::ofstream(cert_, std::ios::app) << std::ifstream(key_).rdbuf();
  EXPECT_EQ(curl(Echo(options("")), "-d hello", "/echo"), "hello");
}

TEST_F(Tls, ThoseWhoSpeakNoTlsAreSentAway) {
  Echo echo(options(key_));
  const UniqueFd silent = echo.connect();
  const UniqueFd plain = echo.connect();
  test::send_text(plain, "GET /open HTTP/1.1\r\n\r\n");
  EXPECT_EQ(Echo::read_all(plain).find("200"), std::string::npos);
  EXPECT_EQ(Echo::read_all(silent), "");
  EXPECT_EQ(curl(echo, "-d hello", "/echo"), "hello");
}

TEST_F(Tls, BadFilesAreToldInOneLine) {
  const std::string missing = (directory_.path() / "missing.pem").string();
  HttpOptions no_cert = options(key_);
  no_cert.ssl_certfile = missing;
  HttpOptions key_alone = options(key_);
  key_alone.ssl_certfile.clear();
  HttpOptions wrong_word = options(locked_);
  wrong_word.ssl_keyfile_password = "sesame";
  for (const auto& [bad, word] : {std::pair(no_cert, "--ssl-certfile " + missing),
                                  std::pair(options(missing), "--ssl-keyfile " + missing),
                                  std::pair(options(cert_), "--ssl-keyfile " + cert_),
                                  std::pair(options(other_), "--ssl-keyfile " + other_),
                                  std::pair(options(locked_), "--ssl-keyfile " + locked_),
                                  std::pair(wrong_word, "--ssl-keyfile " + locked_),
                                  std::pair(key_alone, std::string("--ssl-certfile"))}) {
    const std::string line = refusal(bad);
    EXPECT_NE(line.find(word), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    EXPECT_EQ(line.find("asio"), std::string::npos) << line;
  }
}

}  // namespace
}  // namespace ferry
