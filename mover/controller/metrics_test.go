package controller

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// described returns the names of the metrics that are registered.
type described struct{ names []string }

var descName = regexp.MustCompile(`fqName: "([^"]+)"`)

// Register implements prometheus.Registerer.
func (d *described) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 10)
	c.Describe(descs)
	close(descs)
	for desc := range descs {
		d.names = append(d.names, descName.FindStringSubmatch(desc.String())[1])
	}
	return nil
}

// MustRegister implements prometheus.Registerer.
func (d *described) MustRegister(...prometheus.Collector) { panic("not used") }

// Unregister implements prometheus.Registerer.
func (d *described) Unregister(prometheus.Collector) bool { return false }

// TestMetricsAreDocumented compares the table of docs/metrics.md with the code.
func TestMetricsAreDocumented(t *testing.T) {
	registry := &described{}
	_, err := newMetrics(registry)
	require.NoError(t, err)
	require.NoError(t, registry.Register(newInventory(nil, "", nil, nil, nil)))
	text, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(blockmover_[a-z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, row[1])
	}
	slices.Sort(registry.names)
	slices.Sort(documented)
	require.NotEmpty(t, documented)
	require.Equal(t, registry.names, documented)
}

// TestMonitoringUsesWhatThereIs looks for the metrics of alert rules and dashboard in the code.
func TestMonitoringUsesWhatThereIs(t *testing.T) {
	registry := &described{}
	_, err := newMetrics(registry)
	require.NoError(t, err)
	require.NoError(t, registry.Register(newInventory(nil, "", nil, nil, nil)))
	for _, file := range []string{"rules.yaml", "dashboard.json"} {
		text, err := os.ReadFile("../../deploy/monitoring/" + file)
		require.NoError(t, err)
		used := regexp.MustCompile(`blockmover_[a-z_]+`).FindAllString(string(text), -1)
		require.NotEmpty(t, used)
		for _, name := range used {
			require.Contains(t, registry.names, strings.TrimSuffix(name, "_bucket"), file)
		}
	}
	var dashboard map[string]any
	text, err := os.ReadFile("../../deploy/monitoring/dashboard.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &dashboard))
}

// TestNumbersThatAreNone: whoever may write to a DataUpload chooses these numbers. A counter that shall decrease would panic.
func TestNumbersThatAreNone(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	for _, text := range []string{"-1", "NaN", "-Inf", "", "9223372036854775808"} {
		du := &velerov2alpha1.DataUpload{}
		du.Status.Phase = velerov2alpha1.DataUploadPhaseCompleted
		du.Status.Progress.BytesDone = -1
		du.Status.DataMoverResult = &map[string]string{"bytesRead": text, "bytesUploaded": "7"}
		m.count(operation.Of(du))
	}
	require.EqualValues(t, 35, testutil.ToFloat64(m.bytes.WithLabelValues(identity.KindDataUpload, "bytesUploaded")))
	require.Zero(t, testutil.ToFloat64(m.bytes.WithLabelValues(identity.KindDataUpload, bytesMoved)))
}

// Without a series before it, the first failure would not be an increase, and no alert.
func TestAlertsHaveASeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	_, err := newMetrics(registry)
	require.NoError(t, err)
	families, err := registry.Gather()
	require.NoError(t, err)
	found := map[string]int{}
	for _, f := range families {
		found[f.GetName()] = len(f.GetMetric())
	}
	require.Equal(t, 6, found["blockmover_operations_total"])
	require.Equal(t, 2, found["blockmover_retries_total"])
	require.Equal(t, len(chain.Reasons)+2, found["blockmover_images_total"])
	require.Equal(t, len(chain.Reasons), found["blockmover_fallbacks_total"])
	require.Equal(t, 6, found["blockmover_operation_seconds"])
	require.Equal(t, 1, found["blockmover_suspicious_changes_total"])
}

func TestInventory(t *testing.T) {
	upload := func(name, pvc string, phase velerov2alpha1.DataUploadPhase, age time.Duration) *velerov2alpha1.DataUpload {
		du := &velerov2alpha1.DataUpload{ObjectMeta: metav1.ObjectMeta{
			Namespace: veleroNamespace, Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1_000_000, 0).Add(-age)),
		}}
		du.Spec.DataMover, du.Spec.SourceNamespace, du.Spec.SourcePVC = identity.DataMover, appNamespace, pvc
		du.Status.Phase = phase
		return du
	}
	newest := upload("b", "data", velerov2alpha1.DataUploadPhaseCompleted, 100*time.Second)
	newest.Annotations = map[string]string{
		identity.AnnotationRetained: `{"driver":"driver.example.com"}`, identity.AnnotationTested: `{"at":"1970-01-12T13:46:40Z","result":"ok"}`,
	}
	older := upload("a", "data", velerov2alpha1.DataUploadPhaseCompleted, 200*time.Second)
	older.Annotations = map[string]string{identity.AnnotationTested: `{"at":"1970-01-13T13:46:40Z","result":"errors"}`}
	scheme := runtime.NewScheme()
	require.NoError(t, AddToScheme(scheme))
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		older, newest,
		upload("c", "data", velerov2alpha1.DataUploadPhaseFailed, time.Second),
		upload("d", "log", velerov2alpha1.DataUploadPhaseNew, 30*time.Second), upload("e", "log", "", 20*time.Second),
	).Build()
	leads := make(chan struct{})
	live, err := config.Fixed(config.Config{})
	require.NoError(t, err)
	i := newInventory(c, veleroNamespace, leads, live, func() time.Time { return time.Unix(1_000_000, 0) })
	require.Equal(t, 1, testutil.CollectAndCount(i), "it does not lead: only its configuration")
	close(leads)
	require.NoError(t, testutil.CollectAndCompare(i, strings.NewReader(`
# HELP blockmover_retained_snapshots Storage snapshots that are retained for a backup, by driver.
# TYPE blockmover_retained_snapshots gauge
blockmover_retained_snapshots{driver="driver.example.com"} 1
# HELP blockmover_volume_last_backup_timestamp_seconds When the newest complete backup of a volume was asked for, as Unix time.
# TYPE blockmover_volume_last_backup_timestamp_seconds gauge
blockmover_volume_last_backup_timestamp_seconds{volume="data",volume_namespace="app"} 999900
`), "blockmover_retained_snapshots", "blockmover_volume_last_backup_timestamp_seconds"))
	families, err := prometheus.Gatherers{gatherer(t, i)}.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var key []string
			for _, l := range m.GetLabel() {
				key = append(key, l.GetValue())
			}
			values[f.GetName()+" "+strings.Join(key, " ")] = m.GetGauge().GetValue()
		}
	}
	require.EqualValues(t, 1_000_000, values["blockmover_volume_last_restore_test_timestamp_seconds data app"])
	require.EqualValues(t, 1, values["blockmover_broken_filesystems "])
	require.EqualValues(t, 2, values["blockmover_operations DataUpload New"])
	require.EqualValues(t, 0, values["blockmover_operations DataDownload New"])
	require.EqualValues(t, 30, values["blockmover_oldest_operation_seconds DataUpload New"])
}

func gatherer(t *testing.T, c prometheus.Collector) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewRegistry()
	require.NoError(t, r.Register(c))
	return r
}
