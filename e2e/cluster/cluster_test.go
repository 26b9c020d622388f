package cluster

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func newTestCluster(t *testing.T) *Cluster {
	t.Helper()
	t.Setenv("BLOCKMOVER_STATE_DIR", "/tmp/b")
	c, err := New("a", "/cache")
	if err != nil {
		t.Fatal(err)
	}
	c.State = t.TempDir()
	return c
}

func TestNew(t *testing.T) {
	for name, ok := range map[string]bool{
		"blockmover": true, "a": true, "a-1": true,
		"": false, "-a": false, "a-": false, "A": false, "a/b": false, "..": false, strings.Repeat("a", 33): false,
	} {
		if _, err := New(name, "/cache"); (err == nil) != ok {
			t.Errorf("name %q: error %v, want valid %v", name, err, ok)
		}
	}
	t.Setenv("BLOCKMOVER_STATE_DIR", "/"+strings.Repeat("x", 60))
	if _, err := New("a", "/cache"); err == nil {
		t.Error("a state directory too long for sockets: no error")
	}
}

func TestDriverPorts(t *testing.T) {
	const firstOfConnections = 32768
	seen := map[int]bool{}
	for _, d := range Drivers {
		for _, port := range []int{d.metadataPort, d.healthPort} {
			if port >= firstOfConnections || seen[port] {
				t.Errorf("port %d of %s may be taken", port, d.Name)
			}
			seen[port] = true
		}
	}
}

func TestLogEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if got := logEnd(file); !strings.Contains(got, "no such file") {
		t.Errorf("no log: %q", got)
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 3000)+"\nthe end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := logEnd(file); len(got) >= 2<<10 || !strings.HasSuffix(got, "x\nthe end") {
		t.Errorf("end of the log: %q", got)
	}
}

func TestPKI(t *testing.T) {
	c := newTestCluster(t)
	ca, err := c.createPKI()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Clusters["blockmover"].Server; got != Server {
		t.Errorf("server %s, want %s", got, Server)
	}
	if _, err := c.newAPI(ca); err != nil {
		t.Errorf("client of the administrator's certificate: %v", err)
	}
	for name, host := range map[string]string{"apiserver": serviceIP, "snapshot-metadata": NodeIP, "kubelet-server": NodeIP} {
		cert := parseCert(t, c.path("pki", name+".crt"))
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s for %s: %v", name, host, err)
		}
	}
	if info, err := os.Stat(c.path("pki", "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key: %v, %v", info, err)
	}
}

func TestObjectPath(t *testing.T) {
	for doc, want := range map[string]string{
		"apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: x}":                                  "/apis/storage.k8s.io/v1/storageclasses/x",
		"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: y.z}":              "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/y.z",
		"---\napiVersion: cbt.storage.k8s.io/v1beta1\nkind: SnapshotMetadataService\nmetadata:\n  name: d.io # c": "/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices/d.io",
		"# nothing\n": "",
	} {
		if got, err := objectPath([]byte(doc)); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", doc, got, err, want)
		}
	}
	if _, err := objectPath([]byte("a: b: c")); err == nil {
		t.Error("malformed YAML: no error")
	}
}

func TestMountsBelow(t *testing.T) {
	mountinfo := `27 1 254:0 / / rw - ext4 /dev/vda rw
60 27 0:40 / /var/tmp/b/a/x rw shared:1 - tmpfs t rw
61 60 0:41 / /var/tmp/b/a/x/y rw - tmpfs t rw
62 27 0:42 / /var/tmp/b/ab rw - tmpfs t rw
`
	got := mountsBelow(mountinfo, "/var/tmp/b/a")
	if want := []string{"/var/tmp/b/a/x", "/var/tmp/b/a/x/y"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEnviron(t *testing.T) {
	c := newTestCluster(t)
	env := c.Environ([]string{"KUBECONFIG=/other", "HOME=/root", "PATH=/bin"})
	if !slices.Contains(env, "HOME=/root") || !slices.Contains(env, "KUBECONFIG="+c.Kubeconfig()) {
		t.Errorf("environment %q", env)
	}
	if slices.Contains(env, "KUBECONFIG=/other") || slices.Contains(env, "PATH=/bin") {
		t.Errorf("old values stay: %q", env)
	}
}

func TestStatusErr(t *testing.T) {
	healthy := Status{Phase: PhaseReady, Components: []ComponentStatus{{Name: "etcd"}}}
	if err := healthy.Err(); err != nil {
		t.Error(err)
	}
	dead := Status{Phase: PhaseReady, Components: []ComponentStatus{{Name: "etcd", Exited: "signal: killed"}}}
	if err := dead.Err(); err == nil || !strings.Contains(err.Error(), "etcd is dead: signal: killed") {
		t.Errorf("error %v does not name the dead component", err)
	}
}

func TestWaitFor(t *testing.T) {
	boom := errors.New("boom")
	err := waitFor(context.Background(), "it", time.Millisecond, "/the.log", func(context.Context) error { return boom })
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "/the.log") {
		t.Errorf("error %v: want the last one and the log", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(boom)
	if err := waitFor(ctx, "it", time.Minute, "/the.log", func(context.Context) error { return errors.New("no") }); !errors.Is(err, boom) {
		t.Errorf("error %v: want the cause of the cancellation", err)
	}
	tries := 0
	err = poll(context.Background(), time.Microsecond, func() error {
		if tries++; tries < 3 {
			return boom
		}
		return permanent{errors.ErrUnsupported}
	})
	if !errors.Is(err, errors.ErrUnsupported) || tries != 3 {
		t.Errorf("error %v after %d tries", err, tries)
	}
}

func parseCert(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Only the CRD of SnapshotMetadataService gets the field of the next release.
func TestWithBaseField(t *testing.T) {
	const crd = `
              caCert:
                format: byte
                type: string
            required:
            - address
`
	const want = `
              caCert:
                format: byte
                type: string
              requireBaseSnapshotForDelta:
                type: boolean
            required:
            - address
`
	for in, want := range map[string]string{crd: want, want: want, "kind: Other\n": "kind: Other\n"} {
		if got := withBaseField(in); got != want {
			t.Errorf("withBaseField(%q) = %q, want %q", in, got, want)
		}
	}
}
