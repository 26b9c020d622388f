package kit

import (
	"os"
	"path/filepath"
)

// envAudit is where the audit log of the harness's cluster is copied to.
const envAudit = "BLOCKMOVER_AUDIT"

// SaveAudit copies the audit log of the harness's cluster to where the environment says. It does
// nothing if it says nothing, or if the cluster is another one.
func SaveAudit() error {
	to, state := os.Getenv(envAudit), os.Getenv("BLOCKMOVER_CLUSTER_STATE")
	if to == "" || state == "" {
		return nil
	}
	log, err := os.ReadFile(filepath.Join(state, "audit.log"))
	if err != nil {
		return err
	}
	return os.WriteFile(to, log, 0o600)
}
