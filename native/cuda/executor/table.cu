// table.cu - the plug-in's C face: the table of device.h, and exceptions turned into errors.
#include "cuda/executor/executor.h"
#include "cuda/executor/remote_predictor.h"

#include <cstring>
#include <new>

namespace hotcold {

hc_status operate(const hc_device_op &op); // operate.cu

namespace {

thread_local hc_error last_error;

hc_status keep(hc_status status, const char *text, int64_t value = 0, int64_t limit = 0) {
    last_error = {status, value, limit, ""};
    std::strncpy(last_error.text, text, sizeof last_error.text - 1);
    return status;
}

// No exception crosses the C boundary; each becomes this thread's text, which device.c fetches at
// once.
template <class Body> hc_status guarded(Body body) {
    try {
        return body();
    } catch (const Failure &failure) {
        return keep(failure.status, failure.what(), failure.value, failure.limit);
    } catch (const std::bad_alloc &) {
        return keep(HC_ERR_MEMORY, "the GPU plug-in got no host memory");
    } catch (const std::exception &error) {
        return keep(HC_ERR_SYSTEM, error.what());
    }
}

template <class T>
void *create(const hc_executor_args *args, const hc_device_args *device,
             const hc_device_layer *layers_L) {
    T *made = nullptr;
    guarded([&] {
        made = new T(*args, *device, layers_L);
        return HC_OK;
    });
    return made;
}

template <class T> void destroy(void *self) {
    delete static_cast<T *>(self);
}

hc_status pass(void *self, const hc_device_pass *in, hc_device_report *report) {
    return guarded([&] { return static_cast<Executor *>(self)->pass(*in, *report); });
}

hc_status prompt(void *self, const hc_device_prompt *in, hc_device_report *report) {
    return guarded([&] { return static_cast<Executor *>(self)->prompt(*in, *report); });
}

hc_status answer(void *self, uint32_t seq, int32_t batch, hc_device_report *report) {
    return guarded(
        [&] { return static_cast<PredictorProcess *>(self)->pass(seq, batch, *report); });
}

hc_status operate_guarded(const hc_device_op *op) {
    return guarded([&] { return hotcold::operate(*op); });
}

} // namespace

} // namespace hotcold

extern "C" const hc_device_api *hc_device_table(void) {
    using namespace hotcold;
    static const hc_device_api table = {
        HC_DEVICE_ABI,
        "cuda",
        create<Executor>,
        destroy<Executor>,
        pass,
        prompt,
        [](void *self) { return static_cast<Executor *>(self)->logits(); },
        [](void *self, hc_mailbox *out) { *out = static_cast<Executor *>(self)->mailbox(); },
        create<PredictorProcess>,
        destroy<PredictorProcess>,
        answer,
        []() -> const hc_error * { return &last_error; },
        operate_guarded};
    return &table;
}
