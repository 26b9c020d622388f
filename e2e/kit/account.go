package kit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Account is a service account, as whoever has its token.
type Account struct {
	kit        *Kit
	kubeconfig string
}

// Account returns an account by its token. It writes a kubeconfig below a directory.
func (k *Kit) Account(ctx context.Context, directory, namespace, name string) (*Account, error) {
	token, err := k.Kubectl(ctx, "-n", namespace, "create", "token", name, "--duration=1h")
	if err != nil {
		return nil, err
	}
	text, err := k.Kubectl(ctx, "config", "view", "--raw", "--minify", "--flatten", "-o", "json")
	if err != nil {
		return nil, err
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return nil, fmt.Errorf("decode kubeconfig: %w", err)
	}
	users, ok := config["users"].([]any)
	if !ok || len(users) != 1 {
		return nil, fmt.Errorf("kubeconfig has users %v, want one", config["users"])
	}
	user, ok := users[0].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("kubeconfig has user %v", users[0])
	}
	user["user"] = map[string]any{"token": token}
	encoded, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	file := filepath.Join(directory, namespace+"-"+name+".kubeconfig")
	if err := os.WriteFile(file, encoded, 0o600); err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return &Account{k, file}, nil
}

// Kubectl runs kubectl with the rights of the account.
func (a *Account) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return a.kit.Run(ctx, stdin, "kubectl", append([]string{"--kubeconfig", a.kubeconfig}, args...)...)
}

// Config is how a program connects as the account.
func (a *Account) Config() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", a.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	return config, nil
}
