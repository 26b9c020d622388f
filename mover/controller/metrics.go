package controller

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
)

// metrics count operations as they end, and what the sweep finds.
type metrics struct {
	operations *prometheus.CounterVec
	images     *prometheus.CounterVec
	fallbacks  *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	retries    *prometheus.CounterVec
	suspicions prometheus.Counter
	swept      *prometheus.CounterVec
	groups     prometheus.Gauge
	seconds    *prometheus.HistogramVec
	steps      *prometheus.HistogramVec
}

// newMetrics registers the metrics.
func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	const hour = 3600
	m := &metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_operations_total",
			Help: "Operations that ended, by kind (DataUpload, DataDownload) and phase.",
		}, []string{"operation", "phase"}),
		images: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_images_total",
			Help: "Volume images written, by kind (Full, Incremental) and the reason of a fallback.",
		}, []string{"kind", "reason"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_fallbacks_total",
			Help: "Reasons why volume images are not increments on the newest image, all that an image had, and why volumes were not backed up by KubeVirt or in a group.",
		}, []string{"reason"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_bytes_total",
			Help: "Bytes of operations that ended, by kind of operation and what was done with them.",
		}, []string{"operation", "what"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_retries_total",
			Help: "Attempts of operations that were not the first one, by kind: the mover pod was lost, or an error may pass.",
		}, []string{"operation"}),
		suspicions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "blockmover_suspicious_changes_total",
			Help: "Increments of which far more than usual has changed, and cannot be compressed.",
		}),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blockmover_swept_total",
			Help: "What the sweep has released because nobody else did, by kind.",
		}, []string{"what"}),
		groups: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "blockmover_group_snapshots",
			Help: "Group snapshots that are in the charge of Blockmover, as the last sweep has found.",
		}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "blockmover_operation_seconds",
			Help:    "Time from the creation of an operation to its end.",
			Buckets: []float64{5, 10, 20, 30, 60, 120, 300, 600, 1800, hour, 3 * hour, 10 * hour, 24 * hour},
		}, []string{"operation", "phase"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "blockmover_step_seconds",
			Help:    "Time of the steps of operations that completed at their first attempt.",
			Buckets: []float64{0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, hour, 10 * hour},
		}, []string{"operation", "step"}),
	}
	for _, c := range []prometheus.Collector{m.operations, m.images, m.fallbacks, m.bytes, m.retries, m.suspicions, m.swept, m.groups, m.seconds, m.steps} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	// A counter that first appears with 1 has not increased, as Prometheus sees it: what alerts and the
	// dashboard are about is there from the start.
	for _, kind := range []string{identity.KindDataUpload, identity.KindDataDownload} {
		m.retries.WithLabelValues(kind)
		for _, ended := range []phase.Phase{phase.Completed, phase.Failed, phase.Canceled} {
			m.operations.WithLabelValues(kind, string(ended))
			m.seconds.WithLabelValues(kind, string(ended))
		}
	}
	m.images.WithLabelValues(string(repository.Full), "")
	m.images.WithLabelValues(string(repository.Incremental), "")
	for _, reason := range chain.Reasons {
		m.images.WithLabelValues(string(repository.Full), string(reason))
		m.fallbacks.WithLabelValues(string(reason))
	}
	for _, what := range uploadBytes {
		m.bytes.WithLabelValues(identity.KindDataUpload, what)
	}
	m.bytes.WithLabelValues(identity.KindDataUpload, bytesMoved)
	m.bytes.WithLabelValues(identity.KindDataDownload, bytesMoved)
	for _, what := range sweptKinds {
		m.swept.WithLabelValues(what)
	}
	return m, nil
}

// The kinds of what the sweep releases.
const (
	sweptOperation      = "operation"      // pod, PVC and VolumeSnapshot of an operation that has ended or is gone
	sweptVolumeSnapshot = "volumesnapshot" // taken for a backup that ended before its upload
	sweptRetained       = "retained"       // a storage snapshot that no backup needs any more
	sweptGroup          = "group"          // the group snapshot of a backup that has ended
	sweptVM             = "vmbackup"       // what the backup of a VM left
)

var sweptKinds = []string{sweptOperation, sweptVolumeSnapshot, sweptRetained, sweptGroup, sweptVM}

// bytesMoved is the size of a volume that was backed up or restored; uploadBytes are what the result of an upload says.
const bytesMoved = "moved"

var uploadBytes = []string{"bytesRead", "bytesUploaded", "bytesAudited"}

// inPlace counts what a restore in place has read and written, and why the storage could not say what
// has changed.
func (m *metrics) inPlace(op *operation.View, report *task.Report) {
	m.addBytes(op.Kind, "bytesRead", report.BytesRead)
	m.addBytes(op.Kind, "bytesWritten", report.BytesWritten+report.ZeroBytes)
	m.addBytes(op.Kind, "bytesAudited", report.BytesAudited)
	for _, reason := range report.Reasons {
		m.fallbacks.WithLabelValues(reason).Inc()
	}
}

// addBytes counts bytes, if it is a number of bytes at all: others may write to the status of an operation, and a counter panics if it
// shall decrease.
func (m *metrics) addBytes(kind, what string, n int64) {
	if n > 0 {
		m.bytes.WithLabelValues(kind, what).Add(float64(n))
	}
}

// count counts an operation that has just ended.
func (m *metrics) count(op *operation.View) {
	ended := string(op.Status.Phase)
	m.operations.WithLabelValues(op.Kind, ended).Inc()
	m.seconds.WithLabelValues(op.Kind, ended).Observe(op.Status.Completed.Sub(op.Created).Seconds())
	if op.Status.Phase != phase.Completed {
		return
	}
	m.addBytes(op.Kind, bytesMoved, op.Status.BytesDone)
	result := op.Result()
	if result == nil {
		return
	}
	m.images.WithLabelValues(result["kind"], result["reason"]).Inc()
	for reason := range strings.FieldsFuncSeq(result["reasons"], func(r rune) bool { return r == ',' }) {
		m.fallbacks.WithLabelValues(reason).Inc()
	}
	if suspicionOf(op) != "" {
		m.suspicions.Inc()
	}
	for _, reason := range detours(op) {
		m.fallbacks.WithLabelValues(reason).Inc()
	}
	for _, what := range uploadBytes {
		m.addBytes(op.Kind, what, result.Number(what))
	}
}
