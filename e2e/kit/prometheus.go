package kit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/api"
	prometheusv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"
)

// Prometheus is a real one that reads the metrics of the manager, through the API server, and has the
// alert rules of deploy/monitoring.
type Prometheus struct {
	prometheusv1.API
	// Address is where it answers.
	Address string
	// Started is when it began.
	Started time.Time

	metrics   *http.Server
	processes []*exec.Cmd
	dir       string
}

// ErrNoPrometheus says that the program is not there. `make cluster-build` unpacks it into the cache.
var ErrNoPrometheus = errors.New("there is no Prometheus in $BLOCKMOVER_CACHE")

// StartPrometheus starts it. Its data is in $BLOCKMOVER_PROMETHEUS_DATA, or goes with Stop.
func (k *Kit) StartPrometheus(ctx context.Context) (p *Prometheus, err error) {
	program := filepath.Join(os.Getenv("BLOCKMOVER_CACHE"), "runtime", "usr", "bin", "prometheus")
	if _, err := os.Stat(program); err != nil {
		return nil, ErrNoPrometheus
	}
	p = &Prometheus{Started: time.Now()}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	if p.dir, err = os.MkdirTemp("", "prometheus-"); err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	cluster, err := p.startProxy()
	if err != nil {
		return nil, err
	}
	target, err := p.serveMetrics(cluster, k.VeleroNamespace)
	if err != nil {
		return nil, err
	}
	if err := p.configure(target, filepath.Join(k.DeployDir, "monitoring", "rules.yaml")); err != nil {
		return nil, fmt.Errorf("configure Prometheus: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a port for Prometheus: %w", err)
	}
	p.Address = listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, fmt.Errorf("find a port for Prometheus: %w", err)
	}
	data := os.Getenv("BLOCKMOVER_PROMETHEUS_DATA")
	if data == "" {
		data = filepath.Join(p.dir, "data")
	}
	server := exec.Command(program, "--config.file="+filepath.Join(p.dir, "prometheus.yml"), "--storage.tsdb.path="+data,
		"--web.listen-address="+p.Address, "--log.level=warn")
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	p.processes = append(p.processes, server)
	client, err := api.NewClient(api.Config{Address: "http://" + p.Address})
	if err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	p.API = prometheusv1.NewAPI(client)
	return p, k.Wait(ctx, "Prometheus", time.Minute, func(ctx context.Context) (bool, string, error) {
		_, err := p.Runtimeinfo(ctx)
		return err == nil, fmt.Sprint(err), nil
	})
}

var servesAt = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// startProxy starts kubectl's proxy, and returns its address.
func (p *Prometheus) startProxy() (string, error) {
	proxy := exec.Command("kubectl", "proxy", "--port=0")
	out, err := proxy.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("start kubectl proxy: %w", err)
	}
	if err := proxy.Start(); err != nil {
		return "", fmt.Errorf("start kubectl proxy: %w", err)
	}
	p.processes = append(p.processes, proxy)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("start kubectl proxy: %w", err)
	}
	return servesAt.FindString(line), nil
}

// serveMetrics answers with the metrics of the manager that runs. Debian's Prometheus cannot look for pods.
func (p *Prometheus) serveMetrics(cluster, namespace string) (string, error) {
	pods := fmt.Sprintf("http://%s/api/v1/namespaces/%s/pods", cluster, namespace)
	copyMetrics := func(w http.ResponseWriter, r *http.Request) error {
		var list struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		query := url.Values{
			"labelSelector": {"app.kubernetes.io/name=blockmover,app.kubernetes.io/component=manager"}, "fieldSelector": {"status.phase=Running"},
		}
		if err := fetch(r.Context(), pods+"?"+query.Encode(), func(body io.Reader) error { return json.NewDecoder(body).Decode(&list) }); err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return errors.New("no manager runs")
		}
		return fetch(r.Context(), pods+"/"+list.Items[0].Metadata.Name+":8080/proxy/metrics", func(body io.Reader) error {
			_, err := io.Copy(w, body)
			return err
		})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("serve metrics: %w", err)
	}
	p.metrics = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := copyMetrics(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})}
	go func() { _ = p.metrics.Serve(listener) }() // until Stop
	return listener.Addr().String(), nil
}

func fetch(ctx context.Context, address string, read func(body io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", address, response.Status)
	}
	return read(response.Body)
}

// configure writes the configuration.
func (p *Prometheus) configure(target, rulesFile string) error {
	type object = map[string]any
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		return err
	}
	var rule struct {
		Spec object `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &rule); err != nil {
		return fmt.Errorf("decode %s: %w", rulesFile, err)
	}
	config := object{
		"global":         object{"scrape_interval": "5s", "evaluation_interval": "5s"},
		"rule_files":     []string{"rules.yml"},
		"scrape_configs": []object{{"job_name": "blockmover", "static_configs": []object{{"targets": []string{target}}}}},
	}
	for name, content := range map[string]object{"prometheus.yml": config, "rules.yml": rule.Spec} {
		text, err := yaml.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(p.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Panel is one query of a dashboard.
type Panel struct{ Title, Query string }

// DashboardPanels returns the queries of the dashboard of deploy/monitoring.
func (k *Kit) DashboardPanels() ([]Panel, error) {
	text, err := os.ReadFile(filepath.Join(k.DeployDir, "monitoring", "dashboard.json"))
	if err != nil {
		return nil, fmt.Errorf("read dashboard: %w", err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		return nil, fmt.Errorf("decode dashboard: %w", err)
	}
	var panels []Panel
	for _, p := range dashboard.Panels {
		for _, t := range p.Targets {
			panels = append(panels, Panel{p.Title, t.Expr})
		}
	}
	return panels, nil
}

// HasData reports whether a query yields at least one number now.
func (p *Prometheus) HasData(ctx context.Context, query string) (bool, error) {
	value, _, err := p.Query(ctx, query, time.Now())
	if err != nil {
		return false, fmt.Errorf("query %s: %w", query, err)
	}
	vector, ok := value.(model.Vector)
	return ok && len(vector) > 0, nil
}

// Stop ends it.
func (p *Prometheus) Stop() {
	if p.metrics != nil {
		_ = p.metrics.Close() // nobody reads any more
	}
	for _, process := range p.processes {
		_ = process.Process.Signal(os.Interrupt) // it may have ended
		_ = process.Wait()                       // its end is what was asked for
	}
	_ = os.RemoveAll(p.dir) // in the directory for temporary files
}
