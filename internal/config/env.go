package config

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// ownVariables are those that the mover sets itself, and ownPrefixes what such variables begin with.
var (
	ownVariables = []string{
		"HOME", "GOMEMLIMIT", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CREDENTIALS_FILE",
	}
	ownPrefixes = []string{"BLOCKMOVER_", "LD_"}
)

// checkEnv refuses variables that would change what the mover is told by others.
func (c *Config) checkEnv() error {
	seen := map[string]bool{}
	for i, v := range c.Env {
		own := slices.Contains(ownVariables, v.Name) ||
			slices.ContainsFunc(ownPrefixes, func(prefix string) bool { return strings.HasPrefix(v.Name, prefix) })
		switch problems := validation.IsEnvVarName(v.Name); {
		case len(problems) > 0:
			return fmt.Errorf("env[%d].name is %q: %s", i, v.Name, strings.Join(problems, "; "))
		case own:
			return fmt.Errorf("env[%d].name is %s, which the mover sets itself", i, v.Name)
		case seen[v.Name]:
			return fmt.Errorf("env[%d].name is %s, which is there twice", i, v.Name)
		case v.Value != "" && v.ValueFrom != nil:
			return fmt.Errorf("env[%d] (%s) has a value and a valueFrom", i, v.Name)
		}
		seen[v.Name] = true
	}
	return nil
}

// veleroSecrets are those that Velero makes, or that hold its own credential. A copy under their name
// would be in their place.
var veleroSecrets = []string{"velero-repo-credentials", "velero-restic-credentials", "cloud-credentials"}

// checkCopies checks the names of what is copied from the namespaces of volumes.
func (c *Config) checkCopies() error {
	check := func(field string, names []string) error {
		for _, name := range names {
			if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
				return fmt.Errorf("%s has %q: %s", field, name, strings.Join(problems, "; "))
			}
			if slices.Contains(veleroSecrets, name) {
				return fmt.Errorf("%s has %s, which is a name of Velero's own", field, name)
			}
		}
		return nil
	}
	for class, pvc := range c.BackupPVC {
		for field, names := range map[string][]string{"secretNames": pvc.SecretNames, "configMapNames": pvc.ConfigMapNames} {
			if err := check("backupPVC."+class+"."+field, names); err != nil {
				return err
			}
		}
	}
	if err := check("restorePVC.secretNames", c.RestorePVC.SecretNames); err != nil {
		return err
	}
	return check("restorePVC.configMapNames", c.RestorePVC.ConfigMapNames)
}
