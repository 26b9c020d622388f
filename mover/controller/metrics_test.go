package controller

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
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
