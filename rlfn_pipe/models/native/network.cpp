// What Python calls. The rest is in headers, one upon the other: vector, gemm, amx, winograd, layout, network, changes;
// and pool.

#include <unistd.h>

#include "changes.hpp"
#include "planes.hpp"

// Raised whenever what Python packs changes its meaning.
#define RLFN_VERSION 9

namespace rlfn {

// One for the process, never destroyed, since its threads wait in it to the end; a forked child has none of them.
inline Pool& pool() {
    static std::mutex mutex;
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        pool = new Pool;
        owner = getpid();
    }
    return *pool;
}

// f(a constant: vectors of 16 channels)
template <class F>
auto by_vectors(const Net& net, F&& f) {
    constexpr int FEW = 48 / LANES;
    return net.vectors == FEW ? f(std::integral_constant<int, FEW>{}) : f(std::integral_constant<int, FEW + 1>{});
}

// What f() gives; -1 where memory ended: no exception may leave for Python.
template <class F>
double guarded(F&& f) {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

}  // namespace rlfn

extern "C" {

#define RLFN_EXPORT __attribute__((visibility("default")))

// Tells whether library.py means the same structures.
RLFN_EXPORT size_t rlfn_layout() {
    return sizeof(rlfn::Net) + sizeof(rlfn::Job) + sizeof(rlfn::Block) + sizeof(rlfn::Planes) + sizeof(rlfn::Samples) +
           1000 * RLFN_VERSION;
}

// 0 where this library's instructions work in this process, which may have to ask the system for them first.
RLFN_EXPORT int rlfn_try() {
#if RLFN_AMX
    return rlfn::try_tiles();
#else
    return 0;
#endif
}

// Bytes of `job.workspace`, which need not be cleared; fewer with `job.memory`.
RLFN_EXPORT size_t rlfn_workspace(const rlfn::Net* net, const rlfn::Job* job) {
    return rlfn::by_vectors(*net, [&](auto n) { return rlfn::Network<decltype(n)::value>::workspace(*net, *job); }) +
           64;
}

// Bytes of `job.memory`, in which layers last from picture to picture of one size.
RLFN_EXPORT size_t rlfn_memory(const rlfn::Net* net, const rlfn::Job* job) {
    return rlfn::by_vectors(*net, [&](auto n) { return rlfn::Network<decltype(n)::value>::memory(*net, *job); }) + 64;
}

// Of the following a result below 0 says that memory ended.

// The whole picture; with `job.memory` its layers are kept.
RLFN_EXPORT double rlfn_run(const rlfn::Net* net, const rlfn::Job* job) {
    return rlfn::guarded([&] {
        rlfn::by_vectors(*net, [&](auto n) { rlfn::Network<decltype(n)::value>(*net, *job).run(rlfn::pool()); });
        return 0.0;
    });
}

// Keeps the picture in `job.memory`; the share (0 .. 1) of its squares that differ from the one kept before.
RLFN_EXPORT double rlfn_compare(const rlfn::Net* net, const rlfn::Job* job) {
    return rlfn::guarded([&] {
        return rlfn::by_vectors(
            *net, [&](auto n) { return rlfn::Changes<decltype(n)::value>(*net, *job).compare(rlfn::pool()); });
    });
}

// The picture that was compared last, from the kept layers of the one before; the share (0 .. 1) of the work.
RLFN_EXPORT double rlfn_update(const rlfn::Net* net, const rlfn::Job* job) {
    return rlfn::guarded([&] {
        return rlfn::by_vectors(
            *net, [&](auto n) { return rlfn::Changes<decltype(n)::value>(*net, *job).update(rlfn::pool()); });
    });
}

// A picture of quantised planes.
RLFN_EXPORT double rlfn_picture(const rlfn::Samples* samples) {
    return rlfn::guarded([&] {
        rlfn::Unpacker(*samples).run(rlfn::pool());
        return 0.0;
    });
}

// Quantised planes of a picture.
RLFN_EXPORT double rlfn_planes(const rlfn::Planes* planes) {
    return rlfn::guarded([&] {
        rlfn::Packer(*planes).run(rlfn::pool());
        return 0.0;
    });
}
}
