package kit

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// CheckReasons checks that an upload has exactly these reasons, that its own reason is the
// first one, and that each is in the four places where an administrator may look: the result
// of the DataUpload, its events, the manager's metrics and the manager's log.
func (k *Kit) CheckReasons(ctx context.Context, upload Object, reasons ...string) error {
	result := upload.Status.DataMoverResult
	if result["reason"] != reasons[0] || result["reasons"] != strings.Join(reasons, ",") {
		return fmt.Errorf("%s: reason is %q of %q, want %q of %q: %s",
			upload, result["reason"], result["reasons"], reasons[0], reasons, result["detail"])
	}
	events, err := k.eventsOf(ctx, upload)
	if err != nil {
		return err
	}
	log, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "logs", "deployment/blockmover", "--since=20m")
	if err != nil {
		return err
	}
	metrics, err := k.managerMetrics(ctx)
	if err != nil {
		return err
	}
	images := fmt.Sprintf("blockmover_images_total{kind=%q,reason=%q} ", result["kind"], reasons[0])
	if !strings.Contains(metrics, images) {
		return fmt.Errorf("%s: no metric %s", upload, images)
	}
	for _, reason := range reasons {
		if !strings.Contains(result["detail"], reason+": ") {
			return fmt.Errorf("%s: %s is not in the detail %q", upload, reason, result["detail"])
		}
		if !slices.ContainsFunc(events, func(e event) bool { return e.Reason == reasons[0] && strings.Contains(e.Message, reason+": ") }) {
			return fmt.Errorf("%s: no event with %s: %v", upload, reason, events)
		}
		if fallbacks := fmt.Sprintf("blockmover_fallbacks_total{reason=%q} ", reason); !strings.Contains(metrics, fallbacks) {
			return fmt.Errorf("%s: no metric %s", upload, fallbacks)
		}
		if !slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool {
			return strings.Contains(line, "backup fell back") && strings.Contains(line, upload.Metadata.Name) && strings.Contains(line, reason)
		}) {
			return fmt.Errorf("%s: no line of the manager's log with %s", upload, reason)
		}
	}
	return nil
}

type event struct {
	Type    string `json:"type"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (k *Kit) eventsOf(ctx context.Context, o Object) ([]event, error) {
	out, err := k.Kubectl(ctx, "-n", o.Metadata.Namespace, "get", "events", "--field-selector", "involvedObject.name="+o.Metadata.Name, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []event `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("decode events of %s: %w", o, err)
	}
	return list.Items, nil
}

// WarnedOf reports whether an object has a Warning event with a reason.
func (k *Kit) WarnedOf(ctx context.Context, o Object, reason string) (bool, error) {
	events, err := k.eventsOf(ctx, o)
	return slices.ContainsFunc(events, func(e event) bool { return e.Type == "Warning" && e.Reason == reason }), err
}

// managerMetrics reads what Prometheus would read.
func (k *Kit) managerMetrics(ctx context.Context) (string, error) {
	pods, err := k.List(ctx, "-n", k.VeleroNamespace, "pods", "-l", "app.kubernetes.io/name=blockmover,app.kubernetes.io/component=manager",
		"--field-selector", "status.phase=Running")
	if err != nil {
		return "", err
	}
	if len(pods) != 1 {
		return "", fmt.Errorf("read metrics: %d managers run, want 1", len(pods))
	}
	return k.Kubectl(ctx, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:8080/proxy/metrics", k.VeleroNamespace, pods[0].Metadata.Name))
}
