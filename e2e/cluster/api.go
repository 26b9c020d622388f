package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// api is the small part of a Kubernetes client that bringing a cluster up needs. It works
// only inside the namespaces.
type api struct{ http *http.Client }

func (c *Cluster) newAPI(ca []byte) (*api, error) {
	cert, err := tls.LoadX509KeyPair(c.path("pki", "admin.crt"), c.path("pki", "admin.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &api{&http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}},
		Timeout:   10 * time.Second,
	}}, nil
}

// statusError is an answer that is not 2xx.
type statusError struct {
	code int
	body string
}

func (e *statusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.code, e.body) }

func (a *api) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, Server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/apply-patch+yaml")
	}
	res, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		return nil, &statusError{res.StatusCode, strings.TrimSpace(string(data))}
	}
	return data, nil
}

// apply applies cluster-scoped objects server-side. It tries again until ctx ends if a kind
// is not served yet, because its CRD is new.
func (a *api) apply(ctx context.Context, documents string) error {
	for _, doc := range strings.Split(documents, "\n---\n") {
		path, err := objectPath([]byte(doc))
		if err != nil {
			return err
		}
		if path == "" {
			continue
		}
		err = poll(ctx, 50*time.Millisecond, func() error {
			_, err := a.do(ctx, http.MethodPatch, path+"?fieldManager=e2e&force=true", []byte(doc))
			var status *statusError
			if errors.As(err, &status) && status.code != http.StatusNotFound && status.code < 500 {
				return permanent{err}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
	}
	return nil
}

// objectPath returns the URL path of a cluster-scoped object, or "" for an empty document.
func objectPath(doc []byte) (string, error) {
	var object struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name string }
	}
	if err := yaml.Unmarshal(doc, &object); err != nil {
		return "", fmt.Errorf("parse manifest: %w", err)
	}
	if object.Kind == "" {
		return "", nil
	}
	plural := strings.ToLower(object.Kind) + "s"
	if strings.HasSuffix(object.Kind, "s") {
		plural = strings.ToLower(object.Kind) + "es"
	}
	return "/apis/" + object.APIVersion + "/" + plural + "/" + object.Metadata.Name, nil
}

// applyBase applies the CRDs and classes of the cluster.
func (c *Cluster) applyBase(ctx context.Context, a *api, ca []byte) error {
	crds, err := filepath.Glob(filepath.Join(c.Cache, "crds", "*.yaml"))
	if err != nil {
		return err
	}
	if len(crds) == 0 {
		return errors.New("no CRDs in the cache: run cluster build")
	}
	for _, file := range crds {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := a.apply(ctx, withBaseField(string(data))); err != nil {
			return err
		}
	}
	classes, err := manifests.ReadFile("manifests/storageclasses.yaml")
	if err != nil {
		return err
	}
	if err := a.apply(ctx, string(classes)); err != nil {
		return err
	}
	perDriver, err := template.ParseFS(manifests, "manifests/drivers.yaml")
	if err != nil {
		return err
	}
	for _, d := range Drivers {
		class, _, _ := strings.Cut(d.Name, ".")
		var text strings.Builder
		err := perDriver.Execute(&text, map[string]string{
			"Name": d.Name, "Class": class + "-test",
			"MetadataAddress": NodeIP + ":" + strconv.Itoa(d.metadataPort),
			"CA":              base64.StdEncoding.EncodeToString(ca),
		})
		if err != nil {
			return err
		}
		if err := a.apply(ctx, text.String()); err != nil {
			return err
		}
	}
	return nil
}

// withBaseField adds spec.requireBaseSnapshotForDelta to the CRD of SnapshotMetadataService,
// as the next release has it: kubernetes-csi/external-snapshot-metadata#258. It leaves other
// documents alone, and a CRD that has the field.
func withBaseField(crd string) string {
	const after, field = `
                format: byte
                type: string
            required:
            - address`, "requireBaseSnapshotForDelta:"
	if strings.Contains(crd, field) {
		return crd
	}
	lines := strings.Replace(after, "\n            required:", `
              `+field+`
                type: boolean
            required:`, 1)
	return strings.Replace(crd, after, lines, 1)
}

// nodeReady returns nil if the node is Ready.
func (c *Cluster) nodeReady(ctx context.Context, a *api) error {
	data, err := a.do(ctx, http.MethodGet, "/api/v1/nodes/"+c.Name, nil)
	if err != nil {
		return err
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := json.Unmarshal(data, &node); err != nil {
		return err
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == "Ready" {
			if cond.Status == "True" {
				return nil
			}
			return fmt.Errorf("node is not Ready: %s", cond.Message)
		}
	}
	return errors.New("node has no Ready condition yet")
}

// driversRegistered returns nil if the kubelet knows all drivers.
func (c *Cluster) driversRegistered(ctx context.Context, a *api) error {
	data, err := a.do(ctx, http.MethodGet, "/apis/storage.k8s.io/v1/csinodes/"+c.Name, nil)
	if err != nil {
		return err
	}
	var node struct {
		Spec struct{ Drivers []struct{ Name string } }
	}
	if err := json.Unmarshal(data, &node); err != nil {
		return err
	}
	for _, want := range Drivers {
		found := false
		for _, have := range node.Spec.Drivers {
			found = found || have.Name == want.Name
		}
		if !found {
			return fmt.Errorf("CSI driver %s has not registered", want.Name)
		}
	}
	return nil
}
