package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one cluster. One CA for servers, clients, kubelet and
// CSI is enough for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// validity is longer than the life of a cluster. Clocks may differ by an hour.
const validity = 30 * 24 * time.Hour

func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(pkix.Name{CommonName: "blockmover-e2e-ca"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if err := writeKey(filepath.Join(dir, "ca.key"), key); err != nil {
		return nil, err
	}
	return a, os.WriteFile(filepath.Join(dir, "ca.crt"), a.pem, 0o644)
}

func certificate(subject pkix.Name) *x509.Certificate {
	// 64 random bits: enough for serials to differ.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// issue writes name.crt and name.key; hosts are DNS names and IP addresses.
func (a *authority) issue(name string, subject pkix.Name, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := certificate(subject)
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", name, err)
	}
	if err := writeKey(filepath.Join(a.dir, name+".key"), key); err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return os.WriteFile(filepath.Join(a.dir, name+".crt"), data, 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	// The API server reads service account keys in SEC 1, not in PKCS #8.
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubeconfig issues a client certificate and writes name.kubeconfig with it,
// self-contained.
func (a *authority) kubeconfig(name string, subject pkix.Name) error {
	if err := a.issue(name, subject); err != nil {
		return err
	}
	base := filepath.Join(a.dir, name)
	cert, err := os.ReadFile(base + ".crt")
	if err != nil {
		return err
	}
	key, err := os.ReadFile(base + ".key")
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	data := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: blockmover
clusters:
- name: blockmover
  cluster: {server: %q, certificate-authority-data: %s}
contexts:
- name: blockmover
  context: {cluster: blockmover, user: %s}
users:
- name: %s
  user: {client-certificate-data: %s, client-key-data: %s}
`, Server, b64(a.pem), name, name, b64(cert), b64(key))
	return os.WriteFile(base+".kubeconfig", []byte(data), 0o600)
}

// createPKI writes all keys, certificates and kubeconfigs of the cluster and
// returns the CA certificate.
func (c *Cluster) createPKI() ([]byte, error) {
	a, err := newAuthority(c.path("pki"))
	if err != nil {
		return nil, err
	}
	masters := []string{"system:masters"}
	steps := []error{
		a.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"},
			serviceIP, NodeIP, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
		a.issue("apiserver-kubelet-client", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: masters}),
		a.issue("kubelet-server", pkix.Name{CommonName: "kubelet"}, NodeIP, "127.0.0.1", c.Name),
		a.issue("front-proxy-client", pkix.Name{CommonName: "front-proxy-client"}),
		a.issue("service-accounts", pkix.Name{CommonName: "service-accounts"}),
		a.issue("snapshot-metadata", pkix.Name{CommonName: "csi-snapshot-metadata"}, NodeIP),
		a.kubeconfig("admin", pkix.Name{CommonName: "admin", Organization: masters}),
		a.kubeconfig("controller-manager", pkix.Name{CommonName: "system:kube-controller-manager"}),
		a.kubeconfig("scheduler", pkix.Name{CommonName: "system:kube-scheduler"}),
		a.kubeconfig("kubelet", pkix.Name{CommonName: "system:node:" + c.Name, Organization: []string{"system:nodes"}}),
	}
	for _, err := range steps {
		if err != nil {
			return nil, err
		}
	}
	return a.pem, nil
}
