package controller

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/fscheck"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// inventory are the metrics of what there is, as opposed to what has happened. They are read from the
// cache of the manager when Prometheus asks, so they are right again at once after a restart. Only the
// manager that leads has them: otherwise there would be several of each.
type inventory struct {
	reader    client.Reader
	namespace string
	leads     <-chan struct{}
	now       func() time.Time

	live *config.Live

	operations, oldest, completed, verified, damaged, tested, broken, retained, configured *prometheus.Desc
}

// scrapeTimeout bounds a scrape. The cache answers at once.
const scrapeTimeout = 5 * time.Second

func newInventory(reader client.Reader, namespace string, leads <-chan struct{}, live *config.Live, now func() time.Time) *inventory {
	return &inventory{
		reader: reader, namespace: namespace, leads: leads, live: live, now: now,
		operations: prometheus.NewDesc("blockmover_operations",
			"Operations that have not ended, by kind and phase. New ones wait for their turn.", []string{"operation", "phase"}, nil),
		oldest: prometheus.NewDesc("blockmover_oldest_operation_seconds",
			"Age of the oldest operation that has not ended, by kind and phase.", []string{"operation", "phase"}, nil),
		completed: prometheus.NewDesc("blockmover_volume_last_backup_timestamp_seconds",
			"When the newest complete backup of a volume was asked for, as Unix time.", []string{"volume_namespace", "volume"}, nil),
		verified: prometheus.NewDesc("blockmover_volume_last_verified_timestamp_seconds",
			"When an image of a volume was last read completely, as Unix time.", []string{"volume_namespace", "volume"}, nil),
		damaged: prometheus.NewDesc("blockmover_damaged_images",
			"Images that cannot be restored completely, as their newest verification has found.", nil, nil),
		tested: prometheus.NewDesc("blockmover_volume_last_restore_test_timestamp_seconds",
			"When an image of a volume was last restored onto a scratch volume, and nothing was wrong, as Unix time.", []string{"volume_namespace", "volume"}, nil),
		broken: prometheus.NewDesc("blockmover_broken_filesystems",
			"Images whose file system has errors, as their newest restore test has found.", nil, nil),
		retained: prometheus.NewDesc("blockmover_retained_snapshots",
			"Storage snapshots that are retained for a backup, by driver.", []string{"driver"}, nil),
		configured: prometheus.NewDesc("blockmover_configuration_valid",
			"1 if the configuration can be read as it is now; 0 if an earlier one is in force.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (i *inventory) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{i.operations, i.oldest, i.completed, i.verified, i.damaged, i.tested, i.broken, i.retained, i.configured} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (i *inventory) Collect(metrics chan<- prometheus.Metric) {
	valid := 0.0
	if i.live.Valid() {
		valid = 1
	}
	metrics <- prometheus.MustNewConstMetric(i.configured, prometheus.GaugeValue, valid)
	select {
	case <-i.leads:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	for _, kind := range []string{identity.KindDataUpload, identity.KindDataDownload} {
		all, err := operation.List(ctx, i.reader, kind, client.InNamespace(i.namespace))
		if err != nil {
			metrics <- prometheus.NewInvalidMetric(i.operations, err)
			return
		}
		i.collectUnderway(metrics, kind, all)
		if kind == identity.KindDataUpload {
			i.collectVolumes(metrics, all)
			i.collectTests(metrics, all)
		}
	}
}

// livePhases are those in which an operation has not ended.
var livePhases = []phase.Phase{phase.New, phase.Accepted, phase.Prepared, phase.InProgress, phase.Canceling}

func (i *inventory) collectUnderway(metrics chan<- prometheus.Metric, kind string, all []*operation.View) {
	count, oldest := map[phase.Phase]int{}, map[phase.Phase]time.Duration{}
	for _, op := range all {
		if p := op.Status.Phase; !p.Terminal() {
			count[p]++
			oldest[p] = max(oldest[p], i.now().Sub(op.Created))
		}
	}
	for _, p := range livePhases { // zero is a value, too
		metrics <- prometheus.MustNewConstMetric(i.operations, prometheus.GaugeValue, float64(count[p]), kind, string(p))
		metrics <- prometheus.MustNewConstMetric(i.oldest, prometheus.GaugeValue, oldest[p].Seconds(), kind, string(p))
	}
}

type volume struct{ namespace, name string }

func volumeOf(op *operation.View) volume {
	return volume{op.Upload.Spec.SourceNamespace, op.Upload.Spec.SourcePVC}
}

func (i *inventory) collectVolumes(metrics chan<- prometheus.Metric, all []*operation.View) {
	newest, verified, retained := map[volume]time.Time{}, map[volume]time.Time{}, map[string]int{}
	damaged := 0
	for _, op := range all {
		if op.Status.Phase != phase.Completed {
			continue
		}
		v := volumeOf(op)
		if op.Created.After(newest[v]) {
			newest[v] = op.Created
		}
		switch found, err := op.VerifiedOf(); {
		case err != nil || found == nil:
		case !found.OK:
			damaged++
		case found.At.After(verified[v]):
			verified[v] = found.At
		}
		if base := rehome.ParseRetained(op.Status.Retained); base != nil {
			retained[base.Driver]++
		}
	}
	for v, at := range newest {
		metrics <- prometheus.MustNewConstMetric(i.completed, prometheus.GaugeValue, float64(at.Unix()), v.namespace, v.name)
	}
	for v, at := range verified {
		metrics <- prometheus.MustNewConstMetric(i.verified, prometheus.GaugeValue, float64(at.Unix()), v.namespace, v.name)
	}
	metrics <- prometheus.MustNewConstMetric(i.damaged, prometheus.GaugeValue, float64(damaged))
	for driver, n := range retained {
		metrics <- prometheus.MustNewConstMetric(i.retained, prometheus.GaugeValue, float64(n), driver)
	}
}

// collectTests has what restore tests have found.
func (i *inventory) collectTests(metrics chan<- prometheus.Metric, all []*operation.View) {
	tested, broken := map[volume]time.Time{}, 0
	for _, op := range all {
		found, err := op.TestedOf()
		switch v := volumeOf(op); {
		case err != nil || found == nil:
		case found.Result == fscheck.Errors:
			broken++
		case found.Sound() && found.At.After(tested[v]):
			tested[v] = found.At
		}
	}
	for v, at := range tested {
		metrics <- prometheus.MustNewConstMetric(i.tested, prometheus.GaugeValue, float64(at.Unix()), v.namespace, v.name)
	}
	metrics <- prometheus.MustNewConstMetric(i.broken, prometheus.GaugeValue, float64(broken))
}
